"""Index of the image files below a folder or in a CSV file, as arrays that loader processes share instead of copying.

`wrap_dataset_errors` is the one boundary around indexing: every error becomes a UserError that names the file.
"""
import csv
import os
import re
import unicodedata
from collections import Counter
from contextlib import contextmanager
from functools import lru_cache
from typing import Iterable, Iterator, List, Tuple, Union

import numpy as np

from util.data import array_cache
from util.data.image_files import ARRAY_EXTENSIONS, ignored_as
from util.distributed import hang_detector
from util.errors import SystemFailure, UserError, raise_if_exhausted
from util.files import open_regular
from util.log import logger, progress_bar
from util.text import first_line, listed, one_line

UNLABELLED = ['unlabelled']         # class names of a dataset without labels
CSV_FAULT = 'cannot be read as rows of path,label in UTF-8'
HEADERS = (['path'], ['path', 'label'])
MAX_PATH_CHECKS = 10000         # files of a CSV file, evenly spaced, whose existence is checked before training


@contextmanager
def wrap_dataset_errors(path: str, fault: str = 'cannot be listed') -> Iterator[None]:
    """Convert every error in the block, which indexes the dataset at `path`, into one UserError."""
    try:
        yield
    except (UserError, SystemFailure):
        raise
    except Exception as error:          # also MemoryError: a header may claim more than fits into memory
        raise_if_exhausted(error)
        path, reason = getattr(error, 'filename', None) or path, getattr(error, 'strerror', None) or first_line(error)
        raise UserError('--data_path: {} {} ({})'.format(path, fault, reason)) from error


def encode_names(names: Iterable[Union[str, bytes]]) -> np.ndarray:
    """(N,) byte array of N file names; os.fsdecode restores each."""
    return np.array([os.fsencode(name) for name in names], np.bytes_)


class PathArray:
    """Sequence of paths from an array of encode_names; `root` is the base folder of relative ones."""

    def __init__(self, root: str, names: np.ndarray):
        self.root, self._names = root, names

    def __len__(self):
        return len(self._names)

    def __getitem__(self, index):
        return os.path.join(self.root, os.fsdecode(self._names[index]))

    def relative(self, index: int) -> str:
        """Normalized path relative to `root`, whether it was given as absolute or relative."""
        folder, name = os.path.split(os.fsdecode(self._names[index]))
        return os.path.normpath(os.path.join(_relative_folder(self.root, folder), name))


@lru_cache(maxsize=None)        # os.path.relpath looks up the current directory, which would dominate the time
def _relative_folder(root, folder):
    return os.path.relpath(os.path.join(root, folder) or os.curdir, root or os.curdir)


class FileIndex(PathArray):
    """Paths of the image files below `root`, sorted by name; the files of a folder come before its subfolders.

    `folders` are relative to `root`, which is the first, ''; `folder_of` (N,) is the index there of each file's folder.
    Files directly in `root` count if `root_files`. A log line counts what is ignored. UserError for unlistable folders.
    """

    def __init__(self, root: str, root_files: bool = True):
        with wrap_dataset_errors(root):
            index = array_cache.load_or_build(
                'list of files', root, lambda arrays: list(map(os.fsdecode, arrays['folders'])), lambda: _scan(root))
        first = 0 if root_files else np.count_nonzero(index['folder_of'] == 0)
        super().__init__(root, index['names'][first:])
        self.folders, self.folder_of = list(map(os.fsdecode, index['folders'])), index['folder_of'][first:]
        log_ignored(root, index['ignored'], first)


def log_ignored(root: str, counts: np.ndarray, outside: int = 0) -> None:
    """Log what is not an image: the `ignored` of image_arrays, and the number of images `outside` of class folders."""
    parts = ['{} images outside of class folders'.format(outside)] * bool(outside) + list(map(os.fsdecode, counts))
    if parts:
        logger.info('%s: ignoring %s', root, listed(parts, 9))


def image_arrays(names: List[str], ignored: Counter, **columns: list) -> array_cache.Arrays:
    """Arrays of an index: `names` of N files, and `columns` of N integers or rows of integers.

    Arrays (.npy) count as images only if alone: next to images they are masks or such. `ignored` are the numbers of
    other files by reason (see image_files.ignored_as), such as '12 .txt'; the largest first.
    """
    kept = [i for i, name in enumerate(names) if not name.lower().endswith(ARRAY_EXTENSIONS)] or range(len(names))
    ignored['.npy'] += len(names) - len(kept)
    counts = encode_names('{} {}'.format(count, reason) for reason, count in ignored.most_common() if count)
    return {'names': encode_names(names[i] for i in kept), 'ignored': counts,
            **{name: np.array([column[i] for i in kept], np.int64) for name, column in columns.items()}}


def _scan(root):
    folders, folder_of, names, ignored = [], [], [], Counter()
    with progress_bar('list of files of {}'.format(root), 'images') as bar:
        for folder, subfolders, files in os.walk(root, onerror=_raise, followlinks=True):
            hang_detector.heartbeat('listing {}'.format(one_line(folder)))
            hidden = {name for name in subfolders if ignored_as(name) == 'hidden'}
            subfolders[:] = sorted(name for name in subfolders
                                   if name not in hidden and not _is_link_to_parent(folder, name))
            reasons = {name: ignored_as(name) for name in files}
            images = sorted(name for name in files if not reasons[name])
            ignored.update(filter(None, reasons.values()))
            ignored['hidden'] += len(hidden)
            relative = os.path.relpath(folder, root) if folders else ''
            folder_of += [len(folders)] * len(images)
            names += [os.path.join(relative, name) for name in images]
            folders.append(relative)
            bar.update(len(images))
    return {'folders': encode_names(folders), **image_arrays(names, ignored, folder_of=folder_of)}


def _is_link_to_parent(folder, name):
    """Whether an entry is a symbolic link to a folder that contains it."""
    path = os.path.join(folder, name)
    return os.path.islink(path) and os.path.realpath(path) == os.path.commonpath(
        [os.path.realpath(folder), os.path.realpath(path)])


def _raise(error):
    raise error


def read_class_names(path: str) -> List[str]:
    """Class names in label order, one a line, of a UTF-8 file with or without byte-order mark; see `nfc`.

    Raises UserError that names --class_names if the file is unreadable or has no or an empty line.
    """
    try:
        with open_regular(path, 'r', encoding='utf-8-sig', newline='\n') as file:
            names = [nfc(line.rstrip('\r')) for line in file.read().rstrip('\r\n').split('\n')]
    except (OSError, ValueError) as error:
        reason = 'not UTF-8 text' if isinstance(error, ValueError) else error.strerror
        raise UserError('--class_names {}: cannot be read ({})'.format(path, reason)) from error
    empty = [number for number, name in enumerate(names, 1) if not name.strip()]
    if empty:
        raise UserError('--class_names {}: line {} is empty; expected one class name a line'.format(path, empty[0]))
    return names


def nfc(text: str) -> str:
    """The spelling of a class name that all systems share: macOS decomposes accents (NFD)."""
    return unicodedata.normalize('NFC', text)


def read_csv(path: str, labelled: bool) -> Tuple[PathArray, List[str], np.ndarray]:
    """(paths, class names, (N,) int64 labels) of a CSV file: rows of path,label in UTF-8, with or without a header.

    Paths are relative to the CSV file's folder; duplicate rows count once. If not `labelled`, all labels are 0 and the
    class names UNLABELLED.
    Raises:
        UserError: the file is unreadable, or a row is malformed, lacks a label or names a missing file.
    """
    label_of, columns = {}, 2 if labelled else None
    with wrap_dataset_errors(path, CSV_FAULT):
        for line, cells in _rows(path):
            columns = columns or len(cells)
            if columns > 2 or len(cells) != columns or not all(cells):
                raise ValueError('line {}: expected path,label; quote values that contain commas'.format(line))
            label = nfc(cells[1]) if labelled else UNLABELLED[0]
            if label_of.setdefault(cells[0], label) != label:
                raise ValueError('line {}: {!r} already has a different label'.format(line, cells[0]))
        if not label_of:
            raise ValueError('it lists no images')
        paths = PathArray(os.path.dirname(path), encode_names(label_of))
    for i in range(0, len(paths), len(paths) // MAX_PATH_CHECKS + 1):
        if not os.path.exists(paths[i]):
            raise UserError('--data_path: {}: {} is missing; paths are relative to the folder of the CSV file, and a '
                            'header, if any, is path,label'.format(path, paths[i]))
    names = set(label_of.values())
    numeric = all(re.fullmatch(r'-?[0-9]{1,18}', name) for name in names)
    classes = sorted(names, key=lambda name: (int(name) if numeric else 0, name))
    index_of = {name: index for index, name in enumerate(classes)}
    return paths, classes, np.array([index_of[label] for label in label_of.values()], np.int64)


def has_labels(path: str) -> bool:
    """Whether the first row of a CSV file has a label; UserError if the file is unreadable."""
    with wrap_dataset_errors(path, CSV_FAULT):
        return len(next(_rows(path), (1, ['']))[1]) > 1


def _rows(path):
    """Yield (number of its last line, stripped cells) of each row that is neither blank nor the header."""
    with open_regular(path, 'r', encoding='utf-8-sig', errors='surrogateescape', newline='') as file:
        reader, first = csv.reader(file, strict=True), True
        try:
            for row in reader:
                cells = [cell.strip() for cell in row]
                if any(cells) and not (first and [cell.lower() for cell in cells] in HEADERS):
                    yield reader.line_num, cells
                first = first and not any(cells)
        except csv.Error as error:
            raise ValueError('line {}: {}'.format(reader.line_num, error)) from error
