"""CIFAR-10 and CIFAR-100 in their official python batches (Krizhevsky, 2009)."""
import os
from collections import namedtuple

import numpy as np
from torch.utils.data import Dataset

from util import safe_pickle
from util.errors import UserError
from util.pictures import Picture

# title: for messages; marks: files by which a folder is known; train, val: files of each split; meta: file of the class
# names; labels, names: keys in the files.
Form = namedtuple('Form', 'title folder marks train val meta labels names')
CIFAR_10 = Form('CIFAR-10', 'cifar-10-batches-py', ['data_batch_1'], ['data_batch_{}'.format(i) for i in range(1, 6)],
                ['test_batch'], 'batches.meta', b'labels', b'label_names')
CIFAR_100 = Form('CIFAR-100', 'cifar-100-python', ['train', 'meta'], ['train'], ['test'], 'meta', b'fine_labels',
                 b'fine_label_names')


class CifarBatches(Dataset):
    """(util.pictures.Picture, label) pairs of a split; CIFAR-100's labels are the 100 fine ones.

    Args:
        form: CIFAR_10 or CIFAR_100.
        split: 'train' or 'val'; files: those of `split`, unless they are named.
        transform: takes the picture, and gives what stands in the pair for it.
    Raises:
        UserError: a file is missing or no such batch.
    """

    def __init__(self, folder, form, split='train', transform=None, files=None):
        batches = [_read(folder, name, form, lambda batch: _images_and_labels(batch, form))
                   for name in files or (form.train if split == 'train' else form.val)]
        self.images = np.concatenate([images for images, _ in batches])
        self.labels = [label for _, labels in batches for label in labels]
        self.classes = _read(folder, form.meta, form, lambda meta: [name.decode() for name in meta[form.names]])
        if min(self.labels, default=0) < 0 or max(self.labels, default=0) >= len(self.classes):
            raise UserError('--data_path: {} names {} classes, but there are images of others'.format(
                os.path.join(folder, form.meta), len(self.classes)))
        self.transform = transform

    def __len__(self):
        return len(self.labels)

    def name_of(self, index):
        """Which image of the batches it is, counted from 0."""
        return 'image {}'.format(index)

    def __getitem__(self, index):
        picture = Picture(self.images[index])
        return (self.transform(picture) if self.transform else picture), self.labels[index]


def found(data_path):
    """(folder, form) of the batches in a folder or just below it; None where there are none.

    Raises:
        UserError: both are there.
    """
    places = [(folder, form) for form in (CIFAR_10, CIFAR_100) for folder in
              (data_path, os.path.join(data_path, form.folder)) if _holds(folder, form)]
    if len({form.title for _, form in places}) > 1:
        raise UserError('--data_path: {} holds CIFAR-10 and CIFAR-100; name the folder of one'.format(data_path))
    return places[0] if places else None


def form_of(path):
    """CIFAR_10 or CIFAR_100 where a file is one of its batches, by its name and its neighbours; else None."""
    folder, name = os.path.split(path)
    return next((form for form in (CIFAR_10, CIFAR_100) if name in form.train + form.val
                 and all(os.path.isfile(os.path.join(folder, other)) for other in (name, form.meta))), None)


def _holds(folder, form):
    return all(os.path.isfile(os.path.join(folder, name)) for name in form.marks)


def _images_and_labels(batch, form):
    """(M, 32, 32, 3) uint8 and M numbers of a batch."""
    images = np.asarray(batch[b'data'], dtype=np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    labels = [int(label) for label in batch[form.labels]]
    if len(images) != len(labels):
        raise ValueError('{} images, {} labels'.format(len(images), len(labels)))
    return np.ascontiguousarray(images), labels


def _read(folder, name, form, part):
    """What `part` takes of the dict in a file."""
    path = os.path.join(folder, name)
    try:
        with open(path, 'rb') as file:
            return part(safe_pickle.load(file, encoding='bytes'))
    except (OSError, EOFError, safe_pickle.UnpicklingError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError('--data_path: {} is not a {} batch ({})'.format(path, form.title, error)) from error
