"""Images on disk: ImageFolder trees, tar shards, CIFAR-10's python batches, and plain folders for pre-training."""
import os

import numpy as np
from torch.utils.data import Dataset
from torchvision import datasets

from util import safe_pickle
from util.errors import UserError
from util.listing import Listing
from util.log import logger
from util.pictures import Picture, open_picture
from util.shards import ShardList, classes_shared, tar_files

EXTENSIONS = tuple(datasets.folder.IMG_EXTENSIONS)
CIFAR_FOLDER = 'cifar-10-batches-py'
CIFAR_TRAIN = ['data_batch_{}'.format(i) for i in range(1, 6)]
CIFAR_VAL = ['test_batch']


class ImageList(Dataset):
    """(util.pictures.Picture, label) pairs from files; util.images.UnreadableImage where a file gives none.

    Args:
        paths, labels: sequences, best such that loader processes share; lists are copied by each of them.
        classes: class names by label.
        transform: takes the picture, and gives what stands in the pair for it.
    """

    def __init__(self, paths, labels, classes, transform=None):
        self.paths, self.labels, self.classes, self.transform = paths, labels, classes, transform

    def __len__(self):
        return len(self.paths)

    def name_of(self, index):
        """The file of an image."""
        return self.paths[index]

    def __getitem__(self, index):
        picture = open_picture(self.paths[index])
        return (self.transform(picture) if self.transform else picture), int(self.labels[index])


class CifarBatches(Dataset):
    """CIFAR-10 in its official python batches: dicts of b'data' (M, 3072) uint8 and b'labels' (M,)."""

    def __init__(self, folder, files, transform=None):
        batches = [_read_batch(os.path.join(folder, name), _images_and_labels) for name in files]
        self.images = np.concatenate([images for images, _ in batches])
        self.labels = [label for _, labels in batches for label in labels]
        self.classes = _read_batch(os.path.join(folder, 'batches.meta'),
                                   lambda meta: [name.decode() for name in meta[b'label_names']])
        self.transform = transform

    def __len__(self):
        return len(self.labels)

    def name_of(self, index):
        """Which image of the batches it is, counted from 0."""
        return 'image {}'.format(index)

    def __getitem__(self, index):
        picture = Picture(self.images[index])
        return (self.transform(picture) if self.transform else picture), self.labels[index]


def _images_and_labels(batch):
    """(M, 32, 32, 3) uint8 and M numbers of a batch."""
    images = np.asarray(batch[b'data'], dtype=np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    labels = [int(label) for label in batch[b'labels']]
    if len(images) != len(labels):
        raise ValueError('{} images, {} labels'.format(len(images), len(labels)))
    return np.ascontiguousarray(images), labels


def _read_batch(path, part):
    """What `part` takes of the dict in a file."""
    try:
        with open(path, 'rb') as file:
            return part(safe_pickle.load(file, encoding='bytes'))
    except (OSError, EOFError, safe_pickle.UnpicklingError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError('--data_path: {} is not a CIFAR-10 batch ({})'.format(path, error)) from error


def pretraining_set(data_path, transform=None):
    """Images to pre-train on: <data_path>/train/<class>/, CIFAR-10's training batches, any folder of images or shards.

    Raises:
        UserError: there are no images.
    """
    cifar = _cifar_folder(data_path)
    if cifar:
        return CifarBatches(cifar, CIFAR_TRAIN, transform)
    train = os.path.join(data_path, 'train')
    root = train if os.path.isdir(train) else data_path
    if tar_files(root):
        return ShardList(root, EXTENSIONS, labelled=False, transform=transform)
    paths = Listing(root, EXTENSIONS)
    if not paths:
        raise UserError('--data_path: {} holds no images ({})'.format(root, ' '.join(EXTENSIONS)))
    return ImageList(paths, np.zeros(len(paths), np.int64), ['unlabelled'], transform)


def labelled_set(data_path, split, transform=None, classes=None):
    """Images with classes: <data_path>/<split>/<class>/, tar files in <data_path>/<split>/, or CIFAR-10's batches.

    Args:
        split: 'train' or 'val', in whose place test/ is taken where that is missing.
        classes: class names by label that the result must share; default: the split's own.
    Raises:
        UserError: the folder is missing, empty, or has a class that is not in `classes`.
    """
    cifar = _cifar_folder(data_path)
    if cifar:
        return CifarBatches(cifar, CIFAR_TRAIN if split == 'train' else CIFAR_VAL, transform)
    root, test = os.path.join(data_path, split), os.path.join(data_path, 'test')
    if split == 'val' and not os.path.isdir(root) and os.path.isdir(test):
        logger.info('--data_path: %s is missing; %s takes its place', root, test)
        root = test
    if not os.path.isdir(root):
        raise UserError('--data_path: {} is missing; expected {}/<class>/<images>'.format(root, root))
    if tar_files(root):
        return ShardList(root, EXTENSIONS, True, classes, transform)
    paths = Listing(root, EXTENSIONS, own_files=False)
    class_of = [folder.split(os.sep)[0] for folder in paths.folders]
    own = sorted(set(class_of) - {''})
    if not own:
        raise UserError('--data_path: {} has no class folders; expected {}/<class>/<images>'.format(root, root))
    classes = classes_shared(root, own, classes)
    label_of = {name: label for label, name in enumerate(classes)}
    labels = np.array([label_of.get(name, -1) for name in class_of])[paths.folder_of]       # -1 is the root's: has none
    counts = np.bincount(labels, minlength=len(classes))
    empty = [name for name in own if not counts[label_of[name]]]
    if empty:
        raise UserError('--data_path: {} holds no images ({})'.format(os.path.join(root, empty[0]),
                                                                      ' '.join(EXTENSIONS)))
    return ImageList(paths, labels, classes, transform)


def _cifar_folder(data_path):
    for folder in (data_path, os.path.join(data_path, CIFAR_FOLDER)):
        if os.path.isfile(os.path.join(folder, CIFAR_TRAIN[0])):
            return folder
    return None
