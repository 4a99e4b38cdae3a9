"""Images in tar files, WebDataset's layout: a sample is the members of one name but for the ending, as x.jpg and x.cls.

x.cls holds the label as a number; classes.txt beside the tar files may name the classes, a line each. Without x.cls the
folder of x within the tar file is its class. Where there are no other images, .npy arrays are the images. They are read
at random places, so that order, epoch and resuming are those of the same images in a folder. Made by util.pack_shards.
"""
import copy
import os
import tarfile
from functools import lru_cache

import numpy as np
from torch.utils.data import Dataset

from util import hang_detector, remember
from util.errors import UserError, first_line, one_line
from util.images import ARRAYS, UnreadableImage, without_arrays
from util.listing import Chosen, Strings, arrays_of
from util.pictures import open_picture
from util.progress_bar import progress_bar

CLASSES = 'classes.txt'
INDEX = 'index.npz'         # beside the tar files, where util.pack_shards leaves it
_MOST_OPEN = 128            # tar files that a process keeps open


class ShardList(Dataset):
    """(util.pictures.Picture, label) pairs from the tar files of a folder, like util.datasets.ImageList.

    Args:
        labelled: whether labels are asked for; else all are 0.
        classes: class names by label that the images must share; default: their own.
        transform: takes the picture, and gives what stands in the pair for it.
    Raises:
        UserError: a file is no tar file, holds no image, or the labels are missing or of another set of classes.
    """

    def __init__(self, root, endings, labelled, classes=None, transform=None):
        self.root, self.transform = root, transform
        self._tars = tar_files(root)
        found = index(root, self._tars, endings)
        self._names = Strings.found(found, 'names')
        self._places = found['places']                  # (N, 3): tar file, offset and size in bytes
        if not len(self._names):
            raise UserError('--data_path: the tar files of {} hold no images ({})'.format(root, ' '.join(endings)))
        if labelled:
            own, labels = _classes(root, found)
            self.classes = classes_shared(root, own, classes)
            self.labels = np.array([self.classes.index(name) for name in own])[labels]
        else:
            self.classes, self.labels = ['unlabelled'], np.zeros(len(self._names), np.int64)

    def __len__(self):
        return len(self._names)

    def part(self, places):
        """The images at some places of this dataset, with the same classes."""
        part = copy.copy(self)
        part._names, part._places, part.labels = Chosen(self._names, places), self._places[places], self.labels[places]
        return part

    def names(self):
        """The names of the images, which tell them apart wherever the dataset lies."""
        return iter(self._names)

    def name_of(self, index):
        """Tar file and member of an image."""
        return os.path.join(self.root, self._tars[self._places[index, 0]], self._names[index])

    def __getitem__(self, index):
        tar, offset, size = (int(number) for number in self._places[index])
        try:
            data = os.pread(_opened(os.path.join(self.root, self._tars[tar])).fileno(), size, offset)
        except OSError as error:
            raise UnreadableImage(self.name_of(index), error.strerror) from error
        picture = open_picture(self.name_of(index), data)
        return (self.transform(picture) if self.transform else picture), int(self.labels[index])


@lru_cache(_MOST_OPEN)
def _opened(path):
    return open(path, 'rb', buffering=0)        # closed as the cache drops it


def tar_files(root):
    """Names of the tar files directly in a folder, in order."""
    try:
        return sorted(name for name in os.listdir(root) if name.lower().endswith('.tar'))
    except OSError:
        return []                               # whoever lists the folder says it


def classes_shared(root, own, classes):
    """`classes`, or a folder's own where that is None; UserError where its own are not all among them."""
    strange = sorted(set(own) - set(classes or own))
    if strange:
        near = next((name for name in classes if name.casefold() == strange[0].casefold()), None)
        raise UserError('--data_path: {} has the class {!r}, which the training data have not{}'.format(
            root, strange[0], '; they have {!r}'.format(near) if near else ''))
    return classes or own


def _classes(root, found):
    """(class names, index into them of each image)."""
    labels = found['labels']
    if (labels >= 0).all():
        names = _named_classes(root)
        if names is None:
            return [str(label) for label in range(labels.max() + 1)], labels
        if labels.max() >= len(names):
            raise UserError('--data_path: {} has {} lines, but there is an image of class {}'.format(
                os.path.join(root, CLASSES), len(names), labels.max()))
        return names, labels
    folders = list(Strings.found(found, 'folders'))
    if '' in folders:
        raise UserError('--data_path: the tar files of {} hold images without a class, which is a file .cls beside '
                        'the image or the folder that it is in'.format(root))
    return folders, found['folder_of']


def _named_classes(root):
    path = os.path.join(root, CLASSES)
    try:
        with open(path, encoding='utf-8', errors='surrogateescape') as file:
            lines = file.read().split('\n')
            return lines if lines[-1] else lines[:-1]
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError('--data_path: {} cannot be read ({})'.format(path, first_line(error))) from error


def index(root, tars, endings):
    """{name: array} of what lies where in the tar files of a folder: made once, and remembered."""
    names = 'places', 'labels', 'states', 'folder_of', *arrays_of('names', 'folders', 'tars', 'endings')
    return remember.arrays('index of tar files', root, names, lambda found: _current(root, tars, endings, found),
                           lambda: indexed(root, tars, endings), os.path.join(root, INDEX))


def _current(root, tars, endings, found):
    return (list(Strings.found(found, 'tars')) == tars and list(Strings.found(found, 'endings')) == list(endings)
            and np.array_equal(found['states'], _states(root, tars)))


def _states(root, tars):
    """(N, 2): size in bytes, and time of the last change in ns, of each file."""
    states = [os.stat(os.path.join(root, name)) for name in tars]
    return np.array([(state.st_size, state.st_mtime_ns) for state in states], np.int64)


def indexed(root, tars, endings):
    """({name: array}, newest change in seconds since the epoch) of the tar files of a folder.

    Raises:
        UserError: a file is no tar file, is cut short, or a label is no number.
    """
    names, places, labels, folders = [], [], [], []
    bar = progress_bar('index of tar files of {}'.format(root), 'tar files', len(tars), remember.SLOW)
    for number, tar in bar.over(enumerate(tars)):
        hang_detector.progress('the index of {}'.format(one_line(tar)))
        path = os.path.join(root, tar)
        try:
            images, classes = _members(path, (*endings, *ARRAYS))
        except (OSError, tarfile.TarError, ValueError) as error:
            raise UserError('--data_path: {} is no tar file of images ({})'.format(path, first_line(error))) from error
        for name, offset, size in images:
            names.append(name)
            places.append((number, offset, size))
            labels.append(classes.get(key(name), classes.get(os.path.splitext(name)[0], -1)))
            folders.append(os.path.basename(os.path.dirname(name)))
    kept = without_arrays(names)
    names, places, labels, folders = ([values[place] for place in kept] for values in (names, places, labels, folders))
    states, own = _states(root, tars), sorted(set(folders))
    folder_of = {name: i for i, name in enumerate(own)}
    made = {'places': np.array(places, np.int64).reshape(-1, 3), 'labels': np.array(labels, np.int64), 'states': states,
            'folder_of': np.array([folder_of[name] for name in folders], np.int64)}
    for what, strings in (('names', names), ('folders', own), ('tars', tars), ('endings', endings)):
        made.update(Strings.of(strings).arrays(what))
    return made, states[:, 1].max() / 1e9


def key(name):
    """What the members of a sample have in common: all before the first dot of the file name."""
    folder, file = os.path.split(name)
    return os.path.join(folder, file.split('.')[0])


def _members(path, endings):
    """([(name, offset, size) of each image], {key: label}) of a tar file."""
    images, classes = [], {}
    with open(path, 'rb') as file, tarfile.open(fileobj=file, mode='r:') as tar:
        for member in tar:
            tar.members = []                    # else it remembers them all
            if not member.isreg():
                continue
            if member.name.lower().endswith(endings):
                images.append((member.name, member.offset_data, member.size))
            elif member.name.endswith('.cls'):
                classes[member.name[:-4]] = int(os.pread(file.fileno(), member.size, member.offset_data))
    return images, classes
