"""Where images are: in class folders, tar shards, CSV files, CIFAR's batches, or a plain folder.

`pretraining_set` and `labelled_set` are the images of --data_path, `ImageSources` those that a command line names.
"""
import bisect
import os

import numpy as np
from torch.utils import data
from torchvision import datasets

from util.config.train_flags import is_csv
from util.data import cifar
from util.data.file_index import UNLABELLED, FileIndex, has_labels, read_csv
from util.data.lazy_image import LazyImageDataset, open_image
from util.data.tar_dataset import ShardList, tar_files
from util.data.validation_split import VAL_FRACTION, VAL_SEED, held_out
from util.errors import UserError, reworded
from util.log import logger

EXTENSIONS = tuple(datasets.folder.IMG_EXTENSIONS)
SPLITS = ('train', 'val', 'test')       # folders of a dataset, which are no classes
VAL_NAMES = ('val', 'validation', 'valid', 'test')      # of the folder or CSV file of a validation set, the first there


class ImageList(LazyImageDataset):
    """Images from files.

    Args:
        paths, labels: sequences, best such that loader processes share; lists are copied by each of them.
    """

    def __init__(self, paths, labels, classes, transform=None):
        super().__init__(labels, classes, transform)
        self.paths = paths

    def names(self):
        """The paths within the dataset, which tell the images apart wherever it lies."""
        return (self.paths.relative(i) for i in range(len(self)))

    def name_of(self, index):
        """The file of an image."""
        return self.paths[index]

    def picture(self, index):
        return open_image(self.paths[index])


class Subset(data.Subset):
    """The images at some places of another dataset, with the same classes."""

    def __init__(self, dataset, places):
        super().__init__(dataset, places)
        self.labels, self.classes = dataset.labels[places], dataset.classes

    def name_of(self, index):
        """The file of an image."""
        return self.dataset.name_of(self.indices[index])


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
        return _cifar(batches, 'train', transform)
    root = place(data_path, 'train', labelled=False) or data_path
    if root != data_path and os.path.isdir(root):
        others = [name for name in _subfolders(data_path) if name not in ('train', *VAL_NAMES)]
        if others:
            logger.info('--data_path: %s alone is used; left out beside it: %s', root, ', '.join(others[:9]))
    if os.path.isfile(root) or tar_files(root):
        return _whole(root, transform, labelled=False)
    return _folder(root, transform)


def labelled_set(data_path, split, transform=None, classes=None, val_fraction=VAL_FRACTION, val_seed=VAL_SEED):
    """Images with classes: <data_path>/<split>/<class>/, tar files there, <split>.csv, or CIFAR's batches.

    Where there is no validation set, images of the training set are held out for it; where there is no train/ either,
    of <data_path>/<class>/ or of a CSV file that data_path names.

    Args:
        split: 'train' or 'val'.
        classes: class names by label that the result must share; default: the split's own.
        val_fraction, val_seed: see util.data.validation_split; 0: hold nothing out, and miss a validation set.
    Raises:
        UserError: the images are missing, or have a class that is not in `classes`.
    """
    batches = cifar.found(data_path)
    if batches:
        return _cifar(batches, split, transform)
    train, val = place(data_path, 'train'), place(data_path, 'val')
    if split == 'val' and val:
        usual = os.path.join(data_path, 'val')
        if val not in (usual, usual + '.csv'):
            logger.info('--data_path: %s is missing; %s takes its place', usual, val)
        return _whole(val, transform, True, classes)
    if train is None and val is None:
        train = _undivided(data_path)
    if train is None or split == 'val' and not val_fraction:
        raise UserError('--data_path: {0} is missing; expected {0}/<class>/<images>{1}'.format(
            os.path.join(data_path, split), ', or --val_fraction (1: all images)' * bool(train)))
    whole = _whole(train, transform, True, classes)
    if val or not val_fraction:
        return whole
    chosen = held_out(whole.labels, whole.names(), val_fraction, val_seed)
    part = Subset(whole, np.flatnonzero(chosen == (split == 'val')))
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
    return has_labels(root) if os.path.isfile(root) else bool(_subfolders(root) or tar_files(root))


def _undivided(data_path):
    """data_path itself, where it holds class folders or tar files or is a CSV file; else None.

    Raises:
        UserError: it rather seems to hold a dataset, or parts of one under other names.
    """
    folders = [] if os.path.isfile(data_path) else _subfolders(data_path)
    for name in folders:
        inner = os.path.join(data_path, name)
        if name.lower() in ('train', 'training') or {'train', *VAL_NAMES} & set(_subfolders(inner)):
            raise UserError('--data_path: {} has no train/, and {} is not a class; name the folder that train/ is in, '
                            'or rename it to that'.format(data_path, inner))
    return data_path if folders or os.path.isfile(data_path) or tar_files(data_path) else None


def _subfolders(folder):
    """Names of the folders in a folder, in order."""
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    except OSError:
        return []                               # whoever lists the folder says it


def _cifar(found, split, transform):
    folder, form = found
    return cifar.CifarBatches(folder, form, form.train if split == 'train' else form.val, transform)


def _whole(root, transform, labelled, classes=None):
    """All images of a folder of class folders or tar files, or of a CSV file, with labels by `classes` or their own."""
    if os.path.isfile(root):
        paths, own, labels = read_csv(root, labelled)
        dataset = ImageList(paths, labels, own, transform)
    elif tar_files(root):
        dataset = ShardList(root, EXTENSIONS, labelled, transform)
    else:
        dataset = _class_folders(root, transform)
    if classes:
        label_of = {name: label for label, name in enumerate(classes)}
        strange = sorted(set(dataset.classes) - set(classes))
        if strange:
            raise UserError('--data_path: {} has the class {!r}, which the training data do not have'.format(
                root, strange[0]))
        dataset.labels = np.array([label_of[name] for name in dataset.classes], np.int64)[dataset.labels]
        dataset.classes = classes
    return dataset


def _class_folders(root, transform):
    paths = FileIndex(root, EXTENSIONS, own_files=False)
    if len(paths.folders) == 1:
        raise UserError('--data_path: {} has no class folders; expected {}/<class>/<images>'.format(root, root))
    classes, label_of = np.unique([folder.split(os.sep)[0] for folder in paths.folders[1:]], return_inverse=True)
    labels = label_of[paths.folder_of - 1]              # the first folder is the root
    empty = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)
    if len(empty):
        raise _without_images(os.path.join(root, classes[empty[0]]))
    return ImageList(paths, labels, classes.tolist(), transform)


def _folder(root, transform):
    """All images below a folder, without labels."""
    paths = FileIndex(root, EXTENSIONS)
    if not paths:
        raise _without_images(root)
    return ImageList(paths, np.zeros(len(paths), np.int64), UNLABELLED, transform)


def _without_images(folder):
    return UserError('--data_path: {} holds no images ({})'.format(folder, ' '.join(EXTENSIONS)))


class ImageSources(data.ConcatDataset):
    """(what `transform` makes of the picture, index) pairs; UnreadableImage where a file gives none.

    Folders are searched at any depth; their images come in the order of FileIndex. `classes` are the names
    of the folders right below a named one (below its train/, val/ or test/), of CIFAR, of a CSV file's labels or of the
    tar files, and `labels` (N,) the index there of each image; both None where an image has no class.
    Args:
        paths: files and folders, in this order; a CSV file or a batch of CIFAR stands for its images.
        transform: takes a LazyImage.
    Raises:
        UserError: a path is missing, or a folder holds no images.
    """

    def __init__(self, paths, transform):
        with reworded('--data_path: ', ''):
            super().__init__([part for path in paths for part in _parts(path, transform)])
        self.classes = self.labels = None
        if all(part.classes != UNLABELLED for part in self.datasets):
            self.classes = sorted({name for part in self.datasets for name in part.classes})
            self.labels = np.concatenate([np.searchsorted(self.classes, part.classes)[part.labels]
                                          for part in self.datasets])

    def __getitem__(self, index):
        return super().__getitem__(index)[0], index

    def name_of(self, index):
        """The file of an image; of one within a file, the file and where it is there."""
        part = bisect.bisect_right(self.cumulative_sizes, index)
        return self.datasets[part].name_of(index - self.cumulative_sizes[part])         # counted from its end


def _parts(path, transform):
    """The datasets that a path on a command line stands for."""
    batches, form = cifar.found(path), cifar.form_of(path)
    if batches:
        folder, form = batches
        return [cifar.CifarBatches(folder, form, form.train + form.val, transform)]
    if form:
        return [cifar.CifarBatches(os.path.dirname(path), form, [os.path.basename(path)], transform)]
    packed = [folder for folder in (path, *(os.path.join(path, name) for name in SPLITS)) if tar_files(folder)]
    if packed:
        return [_shards(folder, transform) for folder in packed]
    if is_csv(path):
        return [_whole(path, transform, has_labels(path))]
    if os.path.isdir(path):
        return [_sorted_by_folder(_folder(path, transform))]
    if not os.path.lexists(path):
        raise UserError('{}: there is no such file or folder'.format(path))
    return [ImageList([path], np.zeros(1, np.int64), UNLABELLED, transform)]


def _shards(path, transform):
    try:
        return _whole(path, transform, labelled=True)
    except UserError:                       # they have no classes, or something that the next line says too
        return _whole(path, transform, labelled=False)


def _sorted_by_folder(dataset):
    """The images of `_folder`, with the classes of their folders if each has one."""
    steps = [(*folder.split(os.sep), '') for folder in dataset.paths.folders]
    class_of = np.array([step[step[0] in SPLITS] for step in steps])[dataset.paths.folder_of]
    if '' not in class_of:
        classes, dataset.labels = np.unique(class_of, return_inverse=True)
        dataset.classes = classes.tolist()
    return dataset
