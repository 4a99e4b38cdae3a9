"""Images in tar files, WebDataset's layout: a sample is the members of one name but for the ending, as x.jpg and x.cls.

x.cls holds the label as a number; classes.txt beside the tar files may name the classes, a line each. Without x.cls the
folder of x within the tar file is its class. Where there are no other images, .npy arrays are the images. They are read
at random places, so that order, epoch and resuming are those of the same images in a folder. See pack_shards.
"""
import os
import tarfile
from functools import lru_cache

import numpy as np

from util.data import array_cache
from util.data.file_index import UNLABELLED, encoded, listing
from util.data.image_files import ARRAYS, check_size, without_arrays
from util.data.lazy_image import LazyImageDataset, open_image
from util.distributed import hang_detector
from util.errors import UserError
from util.files import open_regular
from util.log import progress_bar
from util.text import one_line

CLASSES = 'classes.txt'
INDEX = 'index.npz'         # beside the tar files, where util.tools.pack_shards leaves it
MOST_CLASSES = 2 ** 20
_LONGEST_NUMBER = 20        # bytes of a .cls file
_MOST_OPEN = 128            # tar files that a process keeps open


class ShardList(LazyImageDataset):
    """The images in the tar files of a folder, like ImageList.

    Args:
        labelled: whether labels are asked for; else all are 0.
    Raises:
        UserError: a file is not a tar file, holds no image, or labels are asked for and missing.
    """

    def __init__(self, root, endings, labelled, transform=None):
        self.root, self._tars = root, tar_files(root)
        found = array_cache.arrays('index of tar files', root, lambda found: _checked(root, self._tars, endings, found),
                                lambda: indexed(root, self._tars, endings), os.path.join(root, INDEX))
        self._names, self._places = found['names'], found['places']     # (N, 3): tar file, offset and size in bytes
        if not len(self._names):
            raise UserError('--data_path: the tar files of {} hold no images ({})'.format(root, ' '.join(endings)))
        labels, classes = _labels(root, found) if labelled else (np.zeros(len(self._names), np.int64), UNLABELLED)
        super().__init__(labels, classes, transform)

    def names(self):
        """The names of the images, which tell them apart wherever the dataset lies."""
        return map(os.fsdecode, self._names)

    def name_of(self, index):
        """Tar file and member of an image."""
        return os.path.join(self.root, self._tars[self._places[index, 0]], os.fsdecode(self._names[index]))

    def picture(self, index):
        return open_image(self.name_of(index), lambda name: self._bytes(index))

    def _bytes(self, index):
        tar, offset, size = (int(number) for number in self._places[index])
        return os.pread(_opened(os.path.join(self.root, self._tars[tar])).fileno(), check_size(size), offset)


@lru_cache(_MOST_OPEN)
def _opened(path):
    return open_regular(path, buffering=0)      # closed as the cache drops it


def tar_files(root):
    """Names of the tar files directly in a folder, in order."""
    try:
        return sorted(name for name in os.listdir(root) if name.lower().endswith('.tar'))
    except OSError:
        return []                               # whoever lists the folder says it


def _labels(root, found):
    """(label of each image, class names)."""
    labels = found['labels']
    if (labels >= 0).all():
        path, names = os.path.join(root, CLASSES), [str(label) for label in range(labels.max() + 1)]
        if os.path.lexists(path):
            with listing(path, 'cannot be read'), \
                    open_regular(path, 'r', encoding='utf-8', errors='surrogateescape') as file:
                names = file.read().rstrip('\n').split('\n')
        if labels.max() >= len(names):
            raise UserError('--data_path: {} has {} lines, but there is an image of class {}'.format(
                path, len(names), labels.max()))
        return labels, names
    folders, labels = np.unique([os.path.basename(os.path.dirname(os.fsdecode(name))) for name in found['names']],
                                return_inverse=True)
    if '' in folders:
        raise UserError('--data_path: the tar files of {} hold images without a class, which is a file .cls beside '
                        'the image or the folder that it is in'.format(root))
    return labels, folders.tolist()


def _checked(root, tars, endings, found):
    """The state of the tar files; ValueError where an index leads to a place outside of them."""
    (tar, offset, size), labels, names = found['places'].T, found['labels'], found['names']
    end = np.array([os.path.getsize(os.path.join(root, name)) for name in tars])
    if not (names.dtype.kind == 'S' and found['places'].dtype == labels.dtype == np.int64
            and names.shape == labels.shape == tar.shape and _within(tar, 0, len(tars))
            and _within(offset, 0, end[tar] + 1) and _within(size, 0, end[tar] - offset + 1)
            and _within(labels, -1, MOST_CLASSES)):
        raise ValueError('not an index of these tar files')
    return array_cache.state_of(root, tars, endings)[0]


def _within(numbers, least, end):
    return bool(((least <= numbers) & (numbers < end)).all())


def indexed(root, tars, endings):
    """({name: array}, state and time of the last change) of the tar files of a folder; see remember.arrays.

    Raises:
        UserError: a file is not a tar file, is cut short, or a label is not the number of a class.
    """
    names, places, labels = [], [], []
    for number, tar in enumerate(progress_bar('index of tar files of {}'.format(root), 'tar files', items=tars)):
        hang_detector.heartbeat('indexing {}'.format(one_line(tar)))
        path = os.path.join(root, tar)
        with listing(path, 'is not a tar file of images'):
            images, classes = _members(path, (*endings, *ARRAYS))
        for name, offset, size in images:
            names.append(name)
            places.append((number, offset, size))
            stem = os.path.splitext(name)[0]
            sample = os.path.join(os.path.dirname(name), os.path.basename(name).split('.')[0])      # WebDataset's
            labels.append(classes.get(sample, classes.get(stem, -1)))
    kept = without_arrays(names)
    names, places, labels = ([values[place] for place in kept] for values in (names, places, labels))
    return {'names': encoded(names), 'places': np.array(places, np.int64).reshape(-1, 3),
            'labels': np.array(labels, np.int64)}, array_cache.state_of(root, tars, endings)


def _members(path, endings):
    """([(name, offset, size) of each image], {key: label}) of a tar file, which claims nothing that is not there."""
    images, classes = [], {}
    with open_regular(path) as file, tarfile.open(fileobj=file, mode='r:') as tar:
        end = os.fstat(file.fileno()).st_size
        for member in tar:
            tar.members = []                    # else it remembers them all
            if not 0 <= member.size <= end - member.offset_data:
                raise ValueError('{} claims more bytes than there are'.format(member.name))
            if not member.isreg():
                continue
            if member.name.lower().endswith(endings):
                images.append((member.name, member.offset_data, member.size))
            elif member.name.endswith('.cls'):
                classes[member.name[:-4]] = _class(file, member)
    return images, classes


def _class(file, member):
    text = os.pread(file.fileno(), _LONGEST_NUMBER, member.offset_data)[:member.size]
    if not (member.size <= _LONGEST_NUMBER and text.strip().isdigit() and int(text) < MOST_CLASSES):
        raise ValueError('{} is not the number of a class, 0 to {}'.format(member.name, MOST_CLASSES - 1))
    return int(text)
