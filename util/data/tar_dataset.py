"""Dataset of tar shards in WebDataset's layout: members that differ in the extension only (x.jpg, x.cls) are a sample.

x.cls holds the label as a number; classes.txt next to the tar files may list the class names, one per line. Without
x.cls, the class is the folder of x within the tar file. If there are no other images, .npy arrays are the images.
Access is random, so shuffling, epochs and resuming work as for files in a folder. See util.tools.pack_shards.
"""
import os
import tarfile
from functools import lru_cache
from typing import Iterator, List, Sequence

import numpy as np

from util.data import array_cache
from util.data.file_index import UNLABELLED, encode_names, wrap_dataset_errors
from util.data.image_files import ARRAY_EXTENSIONS, check_size, image_positions
from util.data.lazy_image import LazyImage, LazyImageDataset, Transform, open_image
from util.distributed import hang_detector
from util.errors import UserError
from util.files import open_regular
from util.log import progress_bar
from util.text import one_line

CLASSES = 'classes.txt'
INDEX = 'index.npz'         # next to the tar files, written by util.tools.pack_shards
MAX_CLASSES = 2 ** 20
_MAX_CLS_BYTES = 20         # of a .cls file
_MAX_OPEN_FILES = 128       # per process


class TarDataset(LazyImageDataset):
    """The images in the tar files of a folder; if not `labelled`, all labels are 0. `extensions` are in lower case.

    Raises UserError if a file is not a tar file, there are no images, or labels are missing.
    """

    def __init__(self, root: str, extensions: Sequence[str], labelled: bool, transform: Transform = None):
        self.root, self._tars = root, tar_files(root)
        index = array_cache.load_or_build(
            'index of tar files', root, lambda arrays: _fingerprint(root, self._tars, extensions, arrays),
            lambda: _build_index(root, self._tars, extensions), os.path.join(root, INDEX))
        self._names, self._places = index['names'], index['places']     # (N, 3): tar file, offset and size in bytes
        if not len(self._names):
            raise UserError('--data_path: the tar files of {} have no images ({})'.format(root, ' '.join(extensions)))
        labels, classes = _labels(root, index) if labelled else (np.zeros(len(self._names), np.int64), UNLABELLED)
        super().__init__(labels, classes, transform)

    def names(self) -> Iterator[str]:
        """Unique names of the images, independent of the dataset's location."""
        return map(os.fsdecode, self._names)

    def name_of(self, index: int) -> str:
        return os.path.join(self.root, self._tars[self._places[index, 0]], os.fsdecode(self._names[index]))

    def load_image(self, index: int) -> LazyImage:
        return open_image(self.name_of(index), lambda name: self._read(index))

    def _read(self, index):
        tar, offset, size = (int(number) for number in self._places[index])
        return os.pread(_open_tar(os.path.join(self.root, self._tars[tar])).fileno(), check_size(size), offset)


@lru_cache(_MAX_OPEN_FILES)
def _open_tar(path):
    return open_regular(path, buffering=0)      # closed when evicted from the cache


def tar_files(root: str) -> List[str]:
    """Sorted names of the tar files directly in a folder."""
    try:
        return sorted(name for name in os.listdir(root) if name.lower().endswith('.tar'))
    except OSError:
        return []                               # reported when the folder is indexed


def _labels(root, index):
    """((N,) labels, class names)."""
    labels = index['labels']
    if (labels >= 0).all():
        path, classes = os.path.join(root, CLASSES), [str(label) for label in range(labels.max() + 1)]
        if os.path.lexists(path):
            with wrap_dataset_errors(path, 'cannot be read'), \
                    open_regular(path, 'r', encoding='utf-8', errors='surrogateescape') as file:
                classes = file.read().rstrip('\n').split('\n')
        if labels.max() >= len(classes):
            raise UserError('--data_path: {} has {} lines, but there is an image of class {}'.format(
                path, len(classes), labels.max()))
        return labels, classes
    folders, labels = np.unique([os.path.basename(os.path.dirname(os.fsdecode(name))) for name in index['names']],
                                return_inverse=True)
    if '' in folders:
        raise UserError('--data_path: the tar files of {} contain images without a class: they need .cls files or '
                        'class folders'.format(root))
    return labels, folders.tolist()


def _fingerprint(root, tars, extensions, arrays):
    """Fingerprint of the tar files; ValueError if the index points outside of them."""
    (tar, offset, size), labels, names = arrays['places'].T, arrays['labels'], arrays['names']
    end = np.array([os.path.getsize(os.path.join(root, name)) for name in tars])
    if not (names.dtype.kind == 'S' and arrays['places'].dtype == labels.dtype == np.int64
            and names.shape == labels.shape == tar.shape and _in_range(tar, 0, len(tars))
            and _in_range(offset, 0, end[tar] + 1) and _in_range(size, 0, end[tar] - offset + 1)
            and _in_range(labels, -1, MAX_CLASSES)):
        raise ValueError('not an index of these tar files')
    return array_cache.fingerprint(root, tars, extensions)


def _in_range(numbers, start, end):
    return bool(((start <= numbers) & (numbers < end)).all())


def write_index(root: str, extensions: Sequence[str]) -> None:
    """Write the index of a folder's tar files next to them; raises as TarDataset, or OSError."""
    tars = tar_files(root)
    arrays = _build_index(root, tars, extensions)
    array_cache.save(os.path.join(root, INDEX), arrays, _fingerprint(root, tars, extensions, arrays)[0])


def _build_index(root, tars, extensions):
    names, places, labels = [], [], []
    for number, tar in enumerate(progress_bar('index of tar files of {}'.format(root), 'tar files', items=tars)):
        hang_detector.heartbeat('indexing {}'.format(one_line(tar)))
        path = os.path.join(root, tar)
        with wrap_dataset_errors(path, 'is not a tar file of images'):
            images, classes = _members(path, (*extensions, *ARRAY_EXTENSIONS))
        for name, offset, size in images:
            names.append(name)
            places.append((number, offset, size))
            stem = os.path.splitext(name)[0]
            key = os.path.join(os.path.dirname(name), os.path.basename(name).split('.')[0])      # as in WebDataset
            labels.append(classes.get(key, classes.get(stem, -1)))
    kept = image_positions(names)
    names, places, labels = ([values[i] for i in kept] for values in (names, places, labels))
    return {'names': encode_names(names), 'places': np.array(places, np.int64).reshape(-1, 3),
            'labels': np.array(labels, np.int64)}


def _members(path, extensions):
    """([(name, offset, size) of each image], {key: label}) of a tar file; ValueError for sizes beyond its end."""
    images, classes = [], {}
    with open_regular(path) as file, tarfile.open(fileobj=file, mode='r:') as tar:
        end = os.fstat(file.fileno()).st_size
        for member in tar:
            tar.members = []                    # tarfile would keep every header in memory
            if not 0 <= member.size <= end - member.offset_data:
                raise ValueError('{} claims more bytes than there are'.format(member.name))
            if not member.isreg():
                continue
            if member.name.lower().endswith(extensions):
                images.append((member.name, member.offset_data, member.size))
            elif member.name.endswith('.cls'):
                classes[member.name[:-4]] = _class_index(file, member)
    return images, classes


def _class_index(file, member):
    text = os.pread(file.fileno(), _MAX_CLS_BYTES, member.offset_data)[:member.size]
    if not (member.size <= _MAX_CLS_BYTES and text.strip().isdigit() and int(text) < MAX_CLASSES):
        raise ValueError('{} is not a class index, 0 to {}'.format(member.name, MAX_CLASSES - 1))
    return int(text)
