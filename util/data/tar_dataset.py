"""Dataset of tar shards in WebDataset's layout: members that differ in the extension only (x.jpg, x.cls) are a sample.

x.cls (or x.target.cls) holds the label as a number or the name of the class; classes.txt next to the tar files may list
the class names, one per line, in the order of the numbers. Without .cls files, the class is the folder of x within the
tar file. If there are no other images, .npy arrays are the images. Access is random, so shuffling, epochs and resuming
work as for files in a folder. See util.tools.pack_shards.
"""
import os
import re
import tarfile
from collections import Counter
from functools import lru_cache, partial
from typing import Iterator, List

import numpy as np

from util.data import array_cache
from util.data.file_index import UNLABELLED, image_arrays, log_ignored, nfc, read_class_names, wrap_dataset_errors
from util.data.image_files import check_size, ignored_as
from util.data.lazy_image import LazyImage, LazyImageDataset, Transform, open_image
from util.distributed import hang_detector
from util.errors import UserError, reworded
from util.files import open_regular
from util.log import progress_bar
from util.text import one_line

CLASSES = 'classes.txt'
VALIDATION = re.compile(r'(?<![a-z])(val|valid|validation|test|testing|eval)(?![a-z])', re.I)     # in names of splits
MAX_CLASSES = 2 ** 20
_MAX_CLS_BYTES = 256        # of a .cls file
_MAX_OPEN_FILES = 128       # per process


class TarDataset(LazyImageDataset):
    """The images in the tar files of a folder; if not `labelled`, all labels are 0.

    Raises UserError if a file is not a tar file, there are no images, labels are missing, or the names of the tar files
    state different splits.
    """

    def __init__(self, root: str, labelled: bool, transform: Transform = None):
        self.root, self._tars = root, tar_files(root)
        held_out = [name for name in self._tars if VALIDATION.search(name)]
        others = [name for name in self._tars if name not in held_out]
        if held_out and others:
            raise UserError('--data_path: {0} holds tar files of different splits, such as {1} and {2}; move them to '
                            '{0}/val and {0}/train'.format(root, held_out[0], others[0]))
        index = array_cache.load_or_build('index of tar files', root, lambda arrays: self._tars,
                                          lambda: _build_index(root, self._tars))
        log_ignored(root, index['ignored'])
        self._names, self._places = index['names'], index['places']     # (N, 3): tar file, offset and size in bytes
        if not len(self._names):
            raise UserError('--data_path: the tar files of {} have no images'.format(root))
        labels, classes = np.zeros(len(self._names), np.int64), UNLABELLED
        if labelled:
            texts = list(map(os.fsdecode, index['texts']))
            labels, classes = self._file_labels(texts, index['labels']) if texts else self._folder_labels()
        super().__init__(labels, classes, transform)

    def _file_labels(self, texts, labels):
        """((N,) labels, class names) from the .cls files: their `texts`, and the index (N,) there; -1: no file."""
        numbers = any(re.fullmatch('-?[0-9]+', text) for text in texts)
        wrong = [label for label, text in enumerate(texts)
                 if not text or numbers and not (text.isdecimal() and int(text) < MAX_CLASSES)]
        images = np.flatnonzero(np.isin(labels, [-1, *wrong]))
        if len(images):
            raise UserError('--data_path: {}: its .cls file is missing or holds no class; expected {}'.format(
                self.name_of(images[0]), 'a number, 0 to {}'.format(MAX_CLASSES - 1) if numbers else 'a name'))
        path, classes = os.path.join(self.root, CLASSES), None
        if os.path.lexists(path):
            with reworded('--class_names', '--data_path:'):
                classes = read_class_names(path)
        names = list(map(int if numbers else nfc, texts))
        classes = classes or (list(map(str, range(max(names) + 1))) if numbers else sorted(set(names)))
        label_of = {name: label for label, name in enumerate(range(len(classes)) if numbers else classes)}
        unknown = sorted(set(names).difference(label_of))
        if unknown:
            raise UserError('--data_path: {} has {} lines, but there is an image of class {}'.format(
                path, len(classes), unknown[-1]))
        values = np.array([label_of[name] for name in names], np.int64)
        return values[labels], classes

    def _folder_labels(self):
        """((N,) labels, class names) from the images' folders in the tar files."""
        folders, labels = np.unique([nfc(os.path.basename(os.path.dirname(name))) for name in self.names()],
                                    return_inverse=True)
        if '' in folders:
            raise UserError('--data_path: the tar files of {} contain images without a class: they need .cls files or '
                            'class folders'.format(self.root))
        return labels, folders.tolist()

    def names(self) -> Iterator[str]:
        """Unique names of the images, independent of the dataset's location."""
        return map(os.fsdecode, self._names)

    def name_of(self, index: int) -> str:
        return os.path.join(self.root, self._tars[self._places[index, 0]], os.fsdecode(self._names[index]))

    def load_image(self, index: int) -> LazyImage:
        return open_image(self.name_of(index), self.white, lambda name: self._read(index))

    def _read(self, index):
        tar, offset, size = (int(number) for number in self._places[index])
        return os.pread(_open_tar(os.path.join(self.root, self._tars[tar])).fileno(), check_size(size), offset)


_open_tar = lru_cache(_MAX_OPEN_FILES)(partial(open_regular, buffering=0))      # closed when evicted from the cache


def tar_files(root: str) -> List[str]:
    """Sorted names of the tar files directly in a folder."""
    try:
        return sorted(name for name in os.listdir(root)
                      if name.lower().endswith('.tar') and ignored_as(name) != 'hidden')
    except OSError:
        return []                               # reported when the folder is indexed


def _build_index(root, tars):
    names, places, texts, ignored = [], [], [], Counter()
    for number, tar in enumerate(progress_bar('index of tar files of {}'.format(root), 'tar files', items=tars)):
        hang_detector.heartbeat('indexing {}'.format(one_line(tar)))
        path = os.path.join(root, tar)
        with wrap_dataset_errors(path, 'is not a tar file of images'):
            images, classes = _members(path, ignored)
        keys = {}                                   # labels by key, for x.target.cls; None if there are several
        for stem, text in classes.items():
            keys[_key(stem)] = text if keys.get(_key(stem), text) == text else None
        for name, offset, size in images:
            names.append(name)
            places.append((number, offset, size))
            texts.append(classes.get(_key(name), classes.get(os.path.splitext(name)[0], keys.get(_key(name)))))
    unique = sorted({text for text in texts if text is not None})
    label_of = {text: label for label, text in enumerate(unique)}
    labels = [label_of.get(text, -1) for text in texts]
    return {'texts': np.array(unique, np.bytes_), **image_arrays(names, ignored, places=places, labels=labels)}


def _key(name):
    """The part of a member's name that its sample shares in WebDataset: up to the first dot of the file name."""
    folder, file = os.path.split(name)
    return os.path.join(folder, file.split('.')[0])


def _members(path, ignored):
    """([(name, offset, size) of each image], {name without .cls: label}) of a tar file; counts others in `ignored`.

    ValueError for sizes beyond the end of the file.
    """
    images, classes = [], {}
    with open_regular(path) as file, tarfile.open(fileobj=file, mode='r:') as tar:
        end = os.fstat(file.fileno()).st_size
        for member in tar:
            tar.members = []                    # tarfile would keep every header in memory
            if not 0 <= member.size <= end - member.offset_data:
                raise ValueError('{} claims more bytes than there are'.format(member.name))
            if not member.isreg():
                continue
            reason = ignored_as(member.name)
            if not reason:
                images.append((member.name, member.offset_data, member.size))
            elif reason == '.cls':
                if member.size > _MAX_CLS_BYTES:
                    raise ValueError('{} is not the number or name of a class'.format(member.name))
                classes[member.name[:-4]] = os.pread(file.fileno(), member.size, member.offset_data).strip()
            else:
                ignored[reason] += 1
    return images, classes
