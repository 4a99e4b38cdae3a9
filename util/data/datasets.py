"""Datasets from class folders, tar shards, CSV files, CIFAR batches, or a plain folder.

`pretraining_set` and `labelled_set` load --data_path, `InputImages` the paths on a command line.
"""
import bisect
import itertools
import os
import re
from collections import Counter
from contextlib import suppress
from typing import Any, Iterator, List, Optional, Sequence, Tuple

import numpy as np
from torch.utils import data

from util.config.train_flags import is_csv
from util.data import cifar
from util.data.file_index import UNLABELLED, FileIndex, has_labels, nfc, read_csv
from util.data.image_files import UnreadableImage, ignored_as
from util.data.lazy_image import LazyImage, LazyImageDataset, Transform, open_image
from util.data.tar_dataset import VALIDATION, TarDataset, tar_files
from util.data.validation_split import VAL_FRACTION, VAL_SEED, validation_mask
from util.errors import UserError, reworded
from util.log import logger
from util.text import listed

SAMPLED = 32            # images that the range of values is chosen by
NEARLY_CONSTANT = 16    # difference of the brightest and the darkest pixel, of 255
VAL_NAMES = ('val', 'validation', 'valid', 'test')      # folders or CSV files of a validation set, by precedence
SPLITS = ('train', *VAL_NAMES)          # folders of a dataset that are not classes


class ImageList(LazyImageDataset):
    """Dataset of image files; forked loader workers share `paths` if it is a PathArray, and would each copy a list."""

    def __init__(self, paths: Sequence[str], labels: np.ndarray, classes: List[str], transform: Transform = None):
        super().__init__(labels, classes, transform)
        self.paths = paths

    def names(self) -> Iterator[str]:
        """Unique paths within the dataset, independent of its location."""
        return (self.paths.relative(i) for i in range(len(self)))

    def name_of(self, index: int) -> str:
        return self.paths[index]

    def load_image(self, index: int) -> LazyImage:
        return open_image(self.paths[index], self.white)


class Subset(data.Subset):
    """Subset of a dataset, with the same classes."""

    def __init__(self, dataset: LazyImageDataset, indices: np.ndarray):
        super().__init__(dataset, indices)
        self.labels, self.classes = dataset.labels[indices], dataset.classes

    def name_of(self, index: int) -> str:
        return self.dataset.name_of(self.indices[index])


def pretraining_set(data_path: str, transform: Transform = None, val_fraction: float = 0.,
                    val_seed: int = VAL_SEED) -> data.Dataset:
    """Images for pre-training: those of train/ or train.csv if present, else all; see docs/en/dataset.md.

    Args:
        val_fraction, val_seed: leave out the validation split of `labelled_set`.
    Raises:
        UserError: there are no images.
    """
    if val_fraction or cifar.find_cifar(data_path):
        return labelled_set(data_path, 'train', transform, None, val_fraction, val_seed)
    root = find_split(data_path, 'train', labelled=False) or data_path
    if root != data_path and os.path.isdir(root):
        others = [name for name in _subfolders(data_path) if name not in SPLITS]
        if others:
            logger.info('--data_path: using %s only; ignoring its sibling folders: %s', root, listed(others, 9))
    if os.path.isfile(root) or tar_files(root):
        return _load_split(root, transform, labelled=False)
    splits = [name for name in _subfolders(root) if VALIDATION.search(name)]
    if root == data_path and splits and any('train' in name.lower() for name in _subfolders(root)):
        logger.info('warning: --data_path: %s has no train/; using all images below it, also those of %s', root,
                    ', '.join(splits))
    return _unlabelled(FileIndex(root), transform)


def labelled_set(data_path: str, split: str, transform: Transform = None, classes: Optional[List[str]] = None,
                 val_fraction: float = VAL_FRACTION, val_seed: int = VAL_SEED) -> data.Dataset:
    """Images with labels: <data_path>/<split>/<class>/, tar files there, <split>.csv, or CIFAR batches.

    Without a validation set, it is split off train/, or off the class folders or CSV file at data_path.
    Args:
        split: 'train' or 'val'.
        classes: class names by label, of the training set; default: the split's own.
        val_fraction, val_seed: see util.data.validation_split; 0: require a validation set.
    Raises:
        UserError: the images are missing, or have a class that is not in `classes`.
    """
    batches = cifar.find_cifar(data_path)
    if batches:
        folder, version = batches
        return cifar.CifarDataset(folder, version, version.train if split == 'train' else version.val, transform)
    train, val = find_split(data_path, 'train'), find_split(data_path, 'val')
    if split == 'val' and val:
        usual = os.path.join(data_path, 'val')
        if val not in (usual, usual + '.csv'):
            logger.info('--data_path: %s is missing; using %s for validation', usual, val)
        dataset = _load_split(val, transform, True, classes)
        if dataset.white and train:         # images of more than 8 bits need the range of the training
            dataset.white = _load_split(train, None, True).white
        return dataset
    if train is None and val is None:
        train = _unsplit_root(data_path)
    if train is None or split == 'val' and not val_fraction:
        raise UserError('--data_path: {0} is missing; expected {0}/<class>/<images>{1}'.format(
            os.path.join(data_path, split), ', or --val_fraction (1: all images)' * bool(train)))
    whole = _load_split(train, transform, True, classes)
    if val or not val_fraction:
        return whole
    mask = validation_mask(whole.labels, whole.names(), val_fraction, val_seed)
    subset = Subset(whole, np.flatnonzero(mask == (split == 'val')))
    logger.info('%s: %s has no validation images of its own; using %d of its %d images (--val_fraction %g, '
                '--val_seed %d)', 'validation' if split == 'val' else 'training', data_path, len(subset), len(whole),
                val_fraction, val_seed)
    return subset


def has_validation(data_path: str) -> bool:
    """Whether the dataset has its own validation set."""
    return bool(cifar.find_cifar(data_path) or find_split(data_path, 'val'))


def find_split(data_path: str, split: str, labelled: bool = True) -> Optional[str]:
    """Folder or CSV file of a split, or None; a substitute for val/ must have classes: test/ often has none."""
    for name in ('train',) if split == 'train' else VAL_NAMES:
        folder, table = os.path.join(data_path, name), os.path.join(data_path, name + '.csv')
        present = [folder] * os.path.isdir(folder) + [table] * os.path.isfile(table)
        # A CSV file may give the labels of a folder without class folders.
        with_classes = [path for path in present if has_classes(path)] if labelled else []
        if with_classes or present and name in ('train', 'val'):
            return (with_classes + present)[0]
    return None


def has_classes(root: str) -> bool:
    """Whether a folder has subfolders or tar files, or a CSV file has labels."""
    if os.path.isfile(root):
        return has_labels(root)
    return bool(set(_subfolders(root)) - {'images'} or tar_files(root))     # images/ alone is no class: tiny-imagenet


def _unsplit_root(data_path):
    """data_path if it has classes, else None; UserError if it rather contains a dataset, or splits by other names."""
    folders = [] if os.path.isfile(data_path) else _subfolders(data_path)
    for name in folders:
        inner = os.path.join(data_path, name)
        if name.lower() in ('train', 'training') or set(SPLITS) & set(_subfolders(inner)):
            raise UserError('--data_path: {} has no train/, and {} is not a class; give the folder that contains '
                            'train/, or rename it to train/'.format(data_path, inner))
    return data_path if folders or os.path.isfile(data_path) or tar_files(data_path) else None


def _subfolders(folder):
    """Sorted names of the folders in a folder."""
    try:
        return sorted(entry.name for entry in os.scandir(folder)
                      if entry.is_dir() and ignored_as(entry.name) != 'hidden')
    except OSError:
        return []                               # reported when the folder is indexed


def _load_split(root, transform, labelled, classes=None):
    """All images of a folder of class folders or tar files, or of a CSV file, labelled by `classes` or its own."""
    if os.path.isfile(root):
        paths, own_classes, labels = read_csv(root, labelled)
        dataset = ImageList(paths, labels, own_classes, transform)
    elif tar_files(root):
        dataset = TarDataset(root, labelled, transform)
    else:
        dataset = _class_folders(root, transform)
    if classes:
        label_of = {nfc(name): label for label, name in enumerate(classes)}
        counts = Counter(map(nfc, classes))
        wrong = [name for name in dataset.classes if counts[name] != 1]
        if wrong:
            raise UserError('--data_path: {} has the class {!r}, which is {} among the {} of the model: {}'.format(
                root, wrong[0], 'twice' if counts[wrong[0]] else 'not', len(classes), listed(classes)))
        dataset.labels = np.array([label_of[name] for name in dataset.classes], np.int64)[dataset.labels]
        dataset.classes = classes
    elif sorted(dataset.classes, key=by_number) != list(dataset.classes):
        logger.info('warning: the classes of %s are in the order of their names, not of the numbers in them: %s; a '
                    'model whose checkpoint has no class names may count them otherwise (--class_names)', root,
                    listed(dataset.classes, 12))
    return _choose_value_range(dataset)


def _choose_value_range(dataset):
    """Set the `white` of a dataset by SAMPLED of its images, and log it; warn if most of these are nearly constant."""
    whites, ranges = [0], []
    for i in range(0, len(dataset), len(dataset) // SAMPLED + 1):
        with suppress(UnreadableImage):
            image = dataset.load_image(i)
            pixels = image.resized_crop(0, 0, image.height, image.width, (32, 32)).flatten(0, 1).float()    # (N, C)
            whites.append(image.white)
            ranges.append(float((pixels.max(dim=0).values - pixels.min(dim=0).values).max()))
    dataset.white, flat = max(whites), sum(values <= NEARLY_CONSTANT for values in ranges)
    if dataset.white:
        logger.info('value range: 0 to %d, by %d images of integers of more than 8 bits, such as %s', dataset.white,
                    len(ranges), dataset.name_of(0))
    if min(whites) < 0:
        logger.info('value range: the own minimum to maximum of images with values below 0 or above 65535, such as %s',
                    dataset.name_of(0))
    if 2 * flat > len(ranges):
        logger.info('warning: %d of %d images, such as %s, are nearly constant, within %d of 255 grey levels: do they '
                    'use a part of the range of their type? Convert them, or measure --mean and --std',
                    flat, len(ranges), dataset.name_of(0), NEARLY_CONSTANT)
    return dataset


def by_number(name: str) -> list:
    """Sort key by which 'x2' precedes 'x10'."""
    return [int(part) if part.isdecimal() else part for part in re.split('([0-9]+)', name)]


def _class_folders(root, transform):
    paths = FileIndex(root, root_files=False)
    if not has_classes(root):
        raise UserError('--data_path: {0} has no class folders; expected {0}/<class>/<images>, or the labels in '
                        '{0}.csv, rows of path,label'.format(root))
    classes, label_of = np.unique([nfc(folder.split(os.sep)[0]) for folder in paths.folders[1:]],
                                  return_inverse=True)
    labels = label_of[paths.folder_of - 1]              # the first folder is the root
    empty = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)
    if len(empty):
        raise UserError('--data_path: {} contains no images'.format(os.path.join(root, classes[empty[0]])))
    return ImageList(paths, labels, classes.tolist(), transform)


def _unlabelled(paths, transform):
    """Images without labels, from a list of files or a FileIndex."""
    if not paths:
        raise UserError('--data_path: {} contains no images'.format(paths.root))
    return _choose_value_range(ImageList(paths, np.zeros(len(paths), np.int64), UNLABELLED, transform))


class InputImages(data.ConcatDataset):
    """Images of the paths on a command line: (transform(LazyImage), index) pairs, or UnreadableImage.

    Folders are searched recursively, in the order of FileIndex. `classes` are the names of the subfolders of a folder
    (or of its train/, val/ or test/), of CIFAR, of CSV labels or of tar shards, and `labels` (N,) the index there of
    each image; both are None if an image has no class. A CSV file stands for its images. Raises UserError if a path is
    missing or a folder has no images.
    """

    def __init__(self, paths: Sequence[str], transform: Transform):
        with reworded('--data_path: ', ''):
            super().__init__(list(_input_datasets(paths, transform)))
        self.classes = self.labels = None
        if all(part.classes != UNLABELLED for part in self.datasets):
            self.classes = sorted({name for part in self.datasets for name in part.classes})
            self.labels = np.concatenate([np.searchsorted(self.classes, part.classes)[part.labels]
                                          for part in self.datasets])

    def __getitem__(self, index: int) -> Tuple[Any, int]:
        return super().__getitem__(index)[0], index

    def name_of(self, index: int) -> str:
        part = bisect.bisect_right(self.cumulative_sizes, index)
        return self.datasets[part].name_of(index - self.cumulative_sizes[part])         # negative: from the end


def _input_datasets(paths, transform):
    """Datasets of the paths on a command line; image files in a row are one."""
    for are_files, group in itertools.groupby(paths, lambda path: not (os.path.isdir(path) or is_csv(path))):
        if are_files:
            files = list(group)
            missing = [path for path in files if not os.path.lexists(path)]
            if missing:
                raise UserError('{}: no such file or folder'.format(missing[0]))
            yield _unlabelled(files, transform)
            continue
        for path in group:
            batches = cifar.find_cifar(path)
            packed = [folder for folder in (path, *(os.path.join(path, name) for name in SPLITS)) if tar_files(folder)]
            if batches:
                folder, version = batches
                yield cifar.CifarDataset(folder, version, version.train + version.val, transform)
            elif is_csv(path):
                yield _load_split(path, transform, has_labels(path))
            elif packed:
                yield from (_tar_dataset(folder, transform) for folder in packed)
            else:
                yield _with_folder_labels(_unlabelled(FileIndex(path), transform))


def _tar_dataset(path, transform):
    try:
        return _load_split(path, transform, labelled=True)
    except UserError:                       # no classes; any other error is raised again by the next line
        return _load_split(path, transform, labelled=False)


def _with_folder_labels(dataset):
    """Label the images of a FileIndex by their class folders if each has one."""
    parts = [(*folder.split(os.sep), '') for folder in dataset.paths.folders]
    class_of = np.array([nfc(part[part[0] in SPLITS]) for part in parts])[dataset.paths.folder_of]
    if '' not in class_of:
        classes, dataset.labels = np.unique(class_of, return_inverse=True)
        dataset.classes = classes.tolist()
    return dataset
