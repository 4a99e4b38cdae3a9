"""CIFAR-10 and CIFAR-100 in their official python batches (Krizhevsky, 2009)."""
import io
import os
import pickle
import pickletools
from collections import namedtuple

import numpy as np

from util.data.file_index import listing
from util.data.lazy_image import LazyImage, LazyImageDataset
from util.errors import UserError
from util.files import open_regular

# title: for messages; marks: files by which a folder is known; train, val: files of each split; meta: file of the class
# names; labels, names: keys in the files.
Form = namedtuple('Form', 'title folder marks train val meta labels names')
CIFAR_10 = Form('CIFAR-10', 'cifar-10-batches-py', ['data_batch_1'], ['data_batch_{}'.format(i) for i in range(1, 6)],
                ['test_batch'], 'batches.meta', b'labels', b'label_names')
CIFAR_100 = Form('CIFAR-100', 'cifar-100-python', ['train', 'meta'], ['train'], ['test'], 'meta', b'fine_labels',
                 b'fine_label_names')
_NUMPY = ('numpy.ndarray', 'numpy.dtype', 'numpy.core.multiarray._reconstruct', 'numpy._core.multiarray._reconstruct')
MOST_BYTES = 2 ** 29        # of a batch; the largest of the official ones has 2 ** 27.2


class CifarBatches(LazyImageDataset):
    """The images of some batches; CIFAR-100's labels are the 100 fine ones.

    Args:
        form: CIFAR_10 or CIFAR_100.
        files: names of the batches in `folder`, such as form.train.
    Raises:
        UserError: a file is missing or not such a batch.
    """

    def __init__(self, folder, form, files, transform=None):
        batches = [_read(folder, name, form, lambda batch: _images_and_labels(batch, form)) for name in files]
        self.images, labels = (np.concatenate(parts) for parts in zip(*batches))
        self._places = [(os.path.join(folder, name), i) for name, (_, of_one) in zip(files, batches)
                        for i in range(len(of_one))]
        classes = _read(folder, form.meta, form, lambda meta: [name.decode() for name in meta[form.names]])
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
            raise UserError('--data_path: {} names {} classes, but there are images of others'.format(
                os.path.join(folder, form.meta), len(classes)))
        super().__init__(labels, classes, transform)

    def name_of(self, index):
        """The file of an image, and its number there, counted from 0."""
        return '{}:{}'.format(*self._places[index])

    def picture(self, index):
        return LazyImage(self.images[index], self.name_of(index))


def found(data_path):
    """(folder, form) of the batches in a folder or just below it; None where there are none.

    Raises:
        UserError: both are there.
    """
    places = [(folder, form) for form in (CIFAR_10, CIFAR_100) for folder in
              (data_path, os.path.join(data_path, form.folder)) if _holds(folder, form.marks)]
    if len({form.title for _, form in places}) > 1:
        raise UserError('--data_path: {} holds CIFAR-10 and CIFAR-100; name the folder of one'.format(data_path))
    return places[0] if places else None


def form_of(path):
    """CIFAR_10 or CIFAR_100 where a file is one of its batches, by its name and its neighbours; else None."""
    folder, name = os.path.split(path)
    return next((form for form in (CIFAR_10, CIFAR_100) if name in form.train + form.val
                 and _holds(folder, (name, form.meta))), None)


def _holds(folder, names):
    return all(os.path.isfile(os.path.join(folder, name)) for name in names)


def _images_and_labels(batch, form):
    """(M, 32, 32, 3) uint8 and (M,) int64 of a batch."""
    _, shape, dtype, by_columns, content = batch[b'data'].state
    if dtype.arguments[0] not in ('u1', b'u1'):
        raise ValueError('an array of something else than bytes')
    rows = np.frombuffer(content, np.uint8).reshape(shape, order='F' if by_columns else 'C')
    images, labels = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), batch[form.labels]
    if len(images) != len(labels):
        raise ValueError('{} images, {} labels'.format(len(images), len(labels)))
    return np.ascontiguousarray(images), np.array(labels, np.int64)


def _read(folder, name, form, part):
    """What `part` takes of the dict in a file."""
    path = os.path.join(folder, name)
    with listing(path, 'is not a {} batch'.format(form.title)), open_regular(path) as file:
        data = file.read(MOST_BYTES)
        # The unpickler allocates its memo by the largest number in the file, of which an honest one has one a byte.
        if any('PUT' in opcode.name and argument > len(data) for opcode, argument, _ in pickletools.genops(data)):
            raise ValueError('its memo is larger than the file')
        return part(_Unpickler(io.BytesIO(data), encoding='bytes').load())


class _Stub:
    """Stands for numpy's arrays and dtypes: `arguments` and `state` are what numpy would make them of."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def __setstate__(self, state):
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Reads plain values and stubs of arrays; anything else that a pickle names, and could run, is refused."""

    def find_class(self, module, name):
        if '{}.{}'.format(module, name) in _NUMPY:
            return _Stub
        raise pickle.UnpicklingError('it holds {}.{}'.format(module, name))
