"""The images that a command line names: files, folders, also of tar files, CSV lists and CIFAR's batches, as one."""
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
            self._parts = [part for path in paths for part in _parts(path)]
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
        return self._transform(self._parts[part].picture(place)), index

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


def _parts(path):
    """The datasets that a path stands for; their `classes` are None where an image has none."""
    if os.path.isdir(path):
        return _in_folder(path)
    form = cifar.form_of(path)
    if form:
        return [cifar.CifarBatches(os.path.dirname(path), form, [os.path.basename(path)])]
    if is_csv(path):
        labelled = csv_list.has_labels(path)
        files, classes, labels = csv_list.read(path, labelled)
        return [ImageList(files, labels, classes if labelled else None)]
    if not os.path.lexists(path):
        raise UserError('{}: there is no such file or folder'.format(path))
    return [ImageList([path], [0], None)]


def _in_folder(path):
    batches = cifar.found(path)
    if batches:
        folder, form = batches
        files = [name for name in form.train + form.val if os.path.isfile(os.path.join(folder, name))]
        return [cifar.CifarBatches(folder, form, files)]
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
