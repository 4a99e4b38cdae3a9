"""The images that a command line names: files, folders, also of tar files, CSV lists and CIFAR's batches, as one."""
import itertools
import os

import numpy as np
from torch.utils.data import Dataset

from util import cifar, csv_list
from util.arguments import is_csv
from util.datasets import EXTENSIONS, ImageList
from util.errors import UserError, instead_of
from util.listing import Listing
from util.shards import ShardList, tar_files

SPLITS = ('train', 'val', 'test')       # folders of a dataset, which are no classes


class ImageSources(Dataset):
    """(what `transform` makes of the picture, index) pairs; util.images.UnreadableImage where a file gives none.

    Folders are searched at any depth; their images come in the order of util.listing.Listing. `classes` are the names
    of the folders right below a named one (below its train/, val/ or test/), of CIFAR, of a CSV file's labels or of the
    tar files; None where an image has none.
    Args:
        paths: files and folders, in this order; a CSV file or a batch of CIFAR stands for its images.
        transform: takes a util.pictures.Picture.
    Raises:
        UserError: a path is missing, or a folder holds no images.
    """

    def __init__(self, paths, transform):
        with instead_of('--data_path: ', ''):
            # Neighbouring image files are one dataset.
            self._parts = [part for make, group in itertools.groupby(paths, _kind) for part in make(list(group))]
        self._transform = transform
        self._edges = np.cumsum([0] + [len(part) for part in self._parts])
        self.classes = None
        if all(part.classes for part in self._parts):
            self.classes = sorted({name for part in self._parts for name in part.classes})
            label_of = {name: label for label, name in enumerate(self.classes)}
            self._label_of = [[label_of[name] for name in part.classes] for part in self._parts]

    def __len__(self):
        return int(self._edges[-1])

    def __getitem__(self, index):
        part, place = self._place(index)
        return self._transform(self._parts[part][place][0]), index

    def name_of(self, index):
        """The file of an image; of one within a file, the file and where it is there."""
        part, place = self._place(index)
        return self._parts[part].name_of(place)

    def label_of(self, index):
        """Index of an image's class in `classes`."""
        part, place = self._place(index)
        return self._label_of[part][self._parts[part].labels[place]]

    def _place(self, index):
        part = int(np.searchsorted(self._edges, index, side='right')) - 1
        return part, index - int(self._edges[part])


class _CifarBatch(cifar.CifarBatches):
    """One batch file of CIFAR, whose images are named file:number."""

    def __init__(self, path):
        self._path = path
        super().__init__(os.path.dirname(path), cifar.form_of(path), files=[os.path.basename(path)])

    def name_of(self, index):
        return '{}:{}'.format(self._path, index)


def _kind(path):
    """What makes datasets of paths such as this one."""
    if os.path.isdir(path):
        return _folders
    if cifar.form_of(path):
        return _cifar
    return _tables if is_csv(path) else _files


def _files(paths):
    missing = [path for path in paths if not os.path.lexists(path)]
    if missing:
        raise UserError('{}: there is no such file or folder'.format(missing[0]))
    return [ImageList(paths, np.zeros(len(paths), np.int64), None)]


def _cifar(paths):
    return [_CifarBatch(path) for path in paths]


def _tables(paths):
    found = []
    for path in paths:
        labelled = csv_list.has_labels(path)
        files, classes, labels = csv_list.read(path, labelled)
        found.append(ImageList(files, labels, classes if labelled else None))
    return found


def _folders(paths):
    return [part for path in paths for part in _in_folder(path)]


def _in_folder(path):
    batches = cifar.found(path)
    if batches:
        folder, form = batches
        files = [os.path.join(folder, name) for name in form.train + form.val]
        return _cifar([file for file in files if os.path.isfile(file)])
    packed = [folder for folder in (path, *(os.path.join(path, name) for name in SPLITS)) if tar_files(folder)]
    if packed:
        return [_shards(folder) for folder in packed]
    files = Listing(path, EXTENSIONS)
    if not files:
        raise UserError('{}: holds no images ({})'.format(path, ' '.join(EXTENSIONS)))
    class_of = np.array([_class(folder) for folder in files.folders])[files.folder_of]
    names, labels = np.unique(class_of, return_inverse=True)
    return [ImageList(files, labels, None if '' in names else names.tolist())]


def _shards(path):
    try:
        return ShardList(path, EXTENSIONS, labelled=True)
    except UserError:                       # they have no classes, or something that the next line says too
        shards = ShardList(path, EXTENSIONS, labelled=False)
        shards.classes = None
        return shards


def _class(folder):
    """The class of a folder below a named one; '' where it is of none."""
    steps = folder.split(os.sep)
    return (steps[1:] + [''])[0] if steps[0] in SPLITS else steps[0]
