"""Images that a CSV file lists: rows of path,label, in UTF-8, below a header of these words or without one.

Pre-training needs no labels: rows of a path alone will do. Paths are relative to the folder of the file.
"""
import csv
import os
import re
from functools import lru_cache

import numpy as np

from util import hang_detector, remember
from util.errors import UserError, one_line
from util.files import open_regular
from util.listing import Strings, arrays_of, listing
from util.progress_bar import progress_bar

HEADERS = (['path'], ['path', 'label'])
CHECKED = 10000         # files, spread over all, of which it is seen before the work begins that they are there


class CsvPaths:
    """A sequence of the paths that a CSV file lists, in its order."""

    def __init__(self, root, names):
        self.root, self._names = root, names

    def __len__(self):
        return len(self._names)

    def __getitem__(self, index):
        return os.path.join(self.root, self._names[index])

    def relative(self, index):
        """The path from the folder of the file."""
        folder, name = os.path.split(self._names[index])
        return os.path.normpath(os.path.join(_relative_folder(self.root, folder), name))


@lru_cache(maxsize=None)        # a look at the current directory for each image would take most of the time
def _relative_folder(root, folder):
    return os.path.relpath(os.path.join(root, folder) or os.curdir, root or os.curdir)


def read(path, labelled):
    """(CsvPaths, class names, label of each path) of a CSV file.

    A row that is there twice counts once.
    Args:
        labelled: whether labels are asked for; else all are 0 and the name is 'unlabelled'.
    Raises:
        UserError: the file cannot be read, a row is not as it should be, has no label, or names a missing file.
    """
    names = ('labels', 'state', *arrays_of('names', 'classes'))
    with listing(path, 'cannot be read as CSV in UTF-8'):
        found = remember.arrays('labelled images' if labelled else 'images', path, names,
                                lambda kept: np.array_equal(kept['state'], _state(path)), lambda: _read(path, labelled))
    return (CsvPaths(os.path.dirname(path), Strings.found(found, 'names')),
            list(Strings.found(found, 'classes')) if labelled else ['unlabelled'], found['labels'])


def has_labels(path):
    """Whether a CSV file has more than paths, by its first row; UserError where it cannot be read."""
    with listing(path, 'cannot be read as CSV in UTF-8'):
        return len(next(_rows(path), (1, ['']))[1]) > 1


def _state(path):
    status = os.stat(path)
    return np.array([status.st_size, status.st_mtime_ns], np.int64)


def _read(path, labelled):
    """({name: array}, time of the last change in seconds since the epoch)"""
    state, label_of, columns = _state(path), {}, None
    for line, cells in _rows(path):
        columns = columns or len(cells)
        if columns > 2 or len(cells) != columns or not all(cells):
            raise _fault(path, line, 'expected path,label; a path or label that holds a comma goes in double quotes')
        if labelled and columns == 1:
            raise _fault(path, line, 'has no labels: rows of path,label are needed here')
        label = cells[1] if labelled else ''
        if label_of.setdefault(cells[0], label) != label:
            raise _fault(path, line, '{!r} had the label {!r} before, and has {!r} here'.format(
                cells[0], label_of[cells[0]], label))
    if not label_of:
        raise UserError('--data_path: {} lists no images'.format(path))
    _check_files(path, list(label_of))
    classes = _in_order(set(label_of.values()))
    number_of = {name: number for number, name in enumerate(classes)}
    made = {'labels': np.array([number_of[label] for label in label_of.values()], np.int64), 'state': state,
            **Strings.of(label_of).arrays('names'), **Strings.of(classes).arrays('classes')}
    return made, state[1] / 1e9


def _rows(path):
    """(number of its last line, cells without spaces around them) of each row below the header that is not blank."""
    with open_regular(path, 'r', encoding='utf-8-sig', errors='surrogateescape', newline='') as file:
        reader, header = csv.reader(file, strict=True), True
        with progress_bar('reading {}'.format(path), 'rows') as bar:
            while True:
                try:
                    cells = [cell.strip() for cell in next(reader)]
                except StopIteration:
                    return
                except csv.Error as error:
                    raise _fault(path, reader.line_num, str(error)) from error
                if reader.line_num % 10000 == 0:
                    hang_detector.progress('the reading of {}'.format(one_line(path)))
                if any(cells) and not (header and [cell.lower() for cell in cells] in HEADERS):
                    yield reader.line_num, cells
                header = header and not any(cells)
                bar.update()


def _check_files(path, names):
    """Raise UserError where one of the files that are looked for is missing."""
    root = os.path.dirname(path)
    chosen = names[::len(names) // CHECKED + 1]
    for name in progress_bar('looking for the images of {}'.format(path), 'images', items=chosen):
        if not os.path.exists(os.path.join(root, name)):
            raise UserError('--data_path: {}: {} is missing; paths are relative to the folder of the CSV file, and a '
                            'header, if any, is path,label'.format(path, os.path.join(root, name)))


def _in_order(labels):
    """Numbers by their value, names by their letters."""
    if all(re.fullmatch(r'-?[0-9]{1,18}', label) for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)


def _fault(path, line, words):
    return UserError('--data_path: {}, line {}: {}'.format(path, line, words))
