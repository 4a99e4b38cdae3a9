"""CIFAR-10 and CIFAR-100 in their official python batches (Krizhevsky, 2009)."""
import io
import os
import pickle
import pickletools
from collections import namedtuple
from typing import List, Optional, Tuple

import numpy as np

from util.data.file_index import wrap_dataset_errors
from util.data.lazy_image import LazyImage, LazyImageDataset, Transform
from util.errors import UserError
from util.files import open_regular

# title: for messages; train, val: batch files of each split; meta: file of the class names; labels_key, names_key: keys
# in the pickled dicts.
CifarVersion = namedtuple('CifarVersion', 'title folder train val meta labels_key names_key')
CIFAR_10 = CifarVersion('CIFAR-10', 'cifar-10-batches-py', ['data_batch_{}'.format(i) for i in range(1, 6)],
                        ['test_batch'], 'batches.meta', b'labels', b'label_names')
CIFAR_100 = CifarVersion('CIFAR-100', 'cifar-100-python', ['train'], ['test'], 'meta', b'fine_labels',
                         b'fine_label_names')
_NUMPY = ('numpy.ndarray', 'numpy.dtype', 'numpy.core.multiarray._reconstruct', 'numpy._core.multiarray._reconstruct')


class CifarDataset(LazyImageDataset):
    """The images of the batches `files` of a folder, such as version.train; CIFAR-100 with its 100 fine labels.

    Raises UserError if a file is missing or not a CIFAR batch.
    """

    def __init__(self, folder: str, version: CifarVersion, files: List[str], transform: Transform = None):
        batches = [_read(folder, name, version, lambda batch: _images_and_labels(batch, version)) for name in files]
        self.images, labels = (np.concatenate(parts) for parts in zip(*batches))
        self._sources = [(os.path.join(folder, name), i) for name, (_, batch_labels) in zip(files, batches)
                         for i in range(len(batch_labels))]
        classes = _read(folder, version.meta, version, lambda meta: [name.decode() for name in meta[version.names_key]])
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
            raise UserError('--data_path: {} names {} classes, but some labels are out of range'.format(
                os.path.join(folder, version.meta), len(classes)))
        super().__init__(labels, classes, transform)

    def name_of(self, index: int) -> str:
        return '{}:{}'.format(*self._sources[index])

    def load_image(self, index: int) -> LazyImage:
        return LazyImage(self.images[index], self.name_of(index))


def find_cifar(data_path: str) -> Optional[Tuple[str, CifarVersion]]:
    """(folder, version) of the CIFAR batches in a folder or its subfolder of the official name; UserError for both."""
    found = [(folder, version) for version in (CIFAR_10, CIFAR_100)
             for folder in (data_path, os.path.join(data_path, version.folder))
             if all(os.path.isfile(os.path.join(folder, name)) for name in (version.train[0], version.meta))]
    if len({version.title for _, version in found}) > 1:
        raise UserError('--data_path: {} holds CIFAR-10 and CIFAR-100; name the folder of one'.format(data_path))
    return found[0] if found else None


def _images_and_labels(batch, version):
    """(M, 32, 32, 3) uint8 and (M,) int64 arrays of an unpickled batch."""
    rows, labels = batch[b'data'], batch[version.labels_key]
    if rows.dtype != np.uint8:
        raise ValueError('not an array of bytes')
    images = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    if len(images) != len(labels):
        raise ValueError('{} images, {} labels'.format(len(images), len(labels)))
    return np.ascontiguousarray(images), np.array(labels, np.int64)


def _read(folder, name, version, parse):
    """Result of `parse` for the dict in a file."""
    path = os.path.join(folder, name)
    with wrap_dataset_errors(path, 'is not a {} batch'.format(version.title)), open_regular(path) as file:
        data = file.read()
        # The unpickler allocates its memo by the largest index in the file; a valid file has at most one per byte.
        if any('PUT' in opcode.name and argument > len(data) for opcode, argument, _ in pickletools.genops(data)):
            raise ValueError('its memo is larger than the file')
        return parse(_Unpickler(io.BytesIO(data), encoding='bytes').load())


class _Unpickler(pickle.Unpickler):
    """Safe unpickler: plain values and numpy arrays only; refuses every other global, which could run code."""

    def find_class(self, module, name):
        if '{}.{}'.format(module, name) in _NUMPY:
            return super().find_class(module, name)
        raise pickle.UnpicklingError('forbidden global {}.{}'.format(module, name))
