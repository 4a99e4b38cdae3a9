"""Where the images of --data_path are: class folders, tar shards, CSV files, CIFAR's batches, or a plain folder."""
import os

import numpy as np
from torch.utils.data import Dataset
from torchvision import datasets

from util import cifar, csv_list
from util.errors import UserError
from util.held_out import VAL_FRACTION, VAL_SEED, held_out
from util.images import ARRAYS
from util.listing import Chosen, Listing
from util.log import logger
from util.pictures import open_picture
from util.shards import ShardList, classes_shared, tar_files

EXTENSIONS = tuple(datasets.folder.IMG_EXTENSIONS)
VAL_NAMES = ('val', 'validation', 'valid', 'test')      # of the folder or CSV file of a validation set, the first there


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

    def part(self, places):
        """The images at some places of this dataset, with the same classes."""
        return ImageList(Chosen(self.paths, places), self.labels[places], self.classes, self.transform)

    def names(self):
        """The paths within the dataset, which tell the images apart wherever it lies."""
        return (self.paths.relative(i) for i in range(len(self)))

    def name_of(self, index):
        """The file of an image."""
        return self.paths[index]

    def __getitem__(self, index):
        picture = open_picture(self.paths[index])
        return (self.transform(picture) if self.transform else picture), int(self.labels[index])


def pretraining_set(data_path, transform=None, val_fraction=0., val_seed=VAL_SEED):
    """Images to pre-train on: those of train/ or train.csv where there is one, else all; see README, "Dataset".

    Args:
        val_fraction, val_seed: hold out what `labelled_set` would.
    Raises:
        UserError: there are no images.
    """
    if val_fraction:
        return labelled_set(data_path, 'train', transform, None, val_fraction, val_seed)
    batches = cifar.found(data_path)
    if batches:
        return cifar.CifarBatches(*batches, 'train', transform)
    root = place(data_path, 'train', labelled=False) or data_path
    if root != data_path and os.path.isdir(root):
        _tell_left_out(data_path, root)
    if os.path.isfile(root) or tar_files(root):
        return _unsplit(root, transform, labelled=False)
    paths = Listing(root, EXTENSIONS)
    if not paths:
        raise UserError('--data_path: {} holds no images ({})'.format(root, ' '.join(EXTENSIONS)))
    return ImageList(paths, np.zeros(len(paths), np.int64), ['unlabelled'], transform)


def labelled_set(data_path, split, transform=None, classes=None, val_fraction=VAL_FRACTION, val_seed=VAL_SEED):
    """Images with classes: <data_path>/<split>/<class>/, tar files there, <split>.csv, or CIFAR's batches.

    Where there is no validation set, images of the training set are held out for it; where there is no train/ either,
    of <data_path>/<class>/ or of a CSV file that data_path names.

    Args:
        split: 'train' or 'val'.
        classes: class names by label that the result must share; default: the split's own.
        val_fraction, val_seed: see util.held_out; 0: hold nothing out, and miss a validation set.
    Raises:
        UserError: the images are missing, or have a class that is not in `classes`.
    """
    batches = cifar.found(data_path)
    if batches:
        return cifar.CifarBatches(*batches, split, transform)
    train, val = place(data_path, 'train'), place(data_path, 'val')
    if split == 'val' and val:
        usual = os.path.join(data_path, 'val')
        if val not in (usual, usual + '.csv'):
            logger.info('--data_path: %s is missing; %s takes its place', usual, val)
        return _unsplit(val, transform, True, classes)
    if train is None and val is None:
        train = _undivided(data_path)
    if train is None or split == 'val' and not val_fraction:
        missing = os.path.join(data_path, split)
        other = '--val_fraction (1: all images)' if train else os.path.join(data_path, '<class>', '<images>')
        raise UserError('--data_path: {} is missing; expected {}/<class>/<images>{}'.format(
            missing, missing, '' if val else ', or ' + other))
    whole = _unsplit(train, transform, True, classes)
    if val or not val_fraction:
        return whole
    chosen = held_out(whole.labels, whole.names(), val_fraction, val_seed)
    part = whole.part(np.flatnonzero(chosen == (split == 'val')))
    logger.info('%s: %s has no validation images of its own; these are %d of its %d images (--val_fraction %g, '
                '--val_seed %d)', 'validation' if split == 'val' else 'training', data_path, len(part), len(whole),
                val_fraction, val_seed)
    return part


def has_validation(data_path):
    """Whether the data have a validation set of their own."""
    return bool(cifar.found(data_path) or place(data_path, 'val'))


def place(data_path, split, labelled=True):
    """The folder or CSV file of a split; None where there is none, and where data_path is a CSV file for all.

    In the place of val/ only what has classes is taken: test/ is often without.
    """
    for name in ('train',) if split == 'train' else VAL_NAMES:
        folder, table = os.path.join(data_path, name), os.path.join(data_path, name + '.csv')
        there = [folder] * os.path.isdir(folder) + [table] * os.path.isfile(table)
        # Beside images without class folders, the table says what they are.
        with_classes = [path for path in there if has_classes(path)] if labelled else []
        if with_classes or there and name in ('train', 'val'):
            return (with_classes + there)[0]
    return None


def has_classes(root):
    """Whether a folder has subfolders or tar files, or a CSV file has labels."""
    if os.path.isfile(root):
        return csv_list.has_labels(root, EXTENSIONS + ARRAYS)
    return bool(_subfolders(root) or tar_files(root))


def _undivided(data_path):
    """data_path itself, where it holds class folders or is a CSV file.

    Raises:
        UserError: it rather seems to hold a dataset.
    """
    folders = [] if os.path.isfile(data_path) else _subfolders(data_path)
    for name in folders:
        inner = set(_subfolders(os.path.join(data_path, name)))
        if inner & {'train', *VAL_NAMES}:
            raise UserError('--data_path: {} has no train/, but {} has; name that one'.format(
                data_path, os.path.join(data_path, name)) if 'train' in inner else
                '--data_path: {} has no train/, and {} has {}/ alone'.format(
                    data_path, os.path.join(data_path, name), sorted(inner & set(VAL_NAMES))[0]))
        if name.lower() in ('train', 'training'):
            raise UserError('--data_path: {} has no train/; rename {} to it'.format(data_path, name))
    return data_path if folders or os.path.isfile(data_path) or tar_files(data_path) else None


def _subfolders(folder):
    """Names of the folders in a folder, in order."""
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    except OSError:
        return []                               # whoever lists the folder says it


def _tell_left_out(data_path, train):
    others = [name for name in _subfolders(data_path) if name not in ('train', *VAL_NAMES)]
    if others:
        logger.info('--data_path: %s alone is used; left out beside it: %s%s', train, ', '.join(others[:3]),
                    ', ...' if len(others) > 3 else '')


def _unsplit(root, transform, labelled, classes=None):
    """All images of a folder of class folders or tar files, or of a CSV file."""
    if os.path.isfile(root):
        paths, own, labels = csv_list.read(root, EXTENSIONS + ARRAYS, labelled)
        shared = classes_shared(root, own, classes)
        label_of = {name: label for label, name in enumerate(shared)}
        return ImageList(paths, np.array([label_of[name] for name in own], np.int64)[labels], shared, transform)
    if tar_files(root):
        return ShardList(root, EXTENSIONS, labelled, classes, transform)
    return _class_folders(root, transform, classes)


def _class_folders(root, transform, classes):
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
