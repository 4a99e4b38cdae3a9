"""Images that a CSV file lists, a path and a label a row; paths are relative to the folder of the file.

With or without a row of column names; separated by commas, semicolons or tabs; UTF-8 with or without a byte-order mark.
"""
import csv
import os
import re
from functools import lru_cache

import numpy as np

from util import hang_detector, remember
from util.errors import UserError, one_line
from util.listing import Strings, arrays_of
from util.progress_bar import progress_bar

PATHS = ('path', 'file', 'filename', 'file_name', 'filepath', 'file_path', 'image', 'image_path', 'img', 'name')
LABELS = ('label', 'class', 'category', 'target', 'label_name', 'class_name')
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


def read(path, endings, labelled):
    """(CsvPaths, class names, label of each path) of a CSV file.

    A row that is there twice counts once.
    Args:
        endings: of the names of image files; a first row without one is taken for column names.
        labelled: whether labels are asked for; else all are 0 and the name is 'unlabelled'.
    Raises:
        UserError: the file cannot be read, a row is not as it should be, has no label, or names a missing file.
    """
    names = ('labels', 'state', *arrays_of('names', 'classes'))
    what = 'labelled images' if labelled else 'images'
    found = remember.arrays(what, path, names, lambda kept: np.array_equal(kept['state'], _state(path)),
                            lambda: _read(path, endings, labelled))
    return (CsvPaths(os.path.dirname(path), Strings.found(found, 'names')),
            list(Strings.found(found, 'classes')) if labelled else ['unlabelled'], found['labels'])


def has_labels(path, endings):
    """Whether a CSV file has more than paths, by its first row; UserError where it cannot be read."""
    try:
        line, first = next(_rows(path), (0, ['']))
    except OSError as error:
        raise _unread(path, error) from error
    return len(first) > 1


def _unread(path, error):
    return UserError('--data_path: {} cannot be read ({})'.format(path, error.strerror))


def _state(path):
    """Size in bytes, and time of the last change in ns."""
    state = os.stat(path)
    return np.array([state.st_size, state.st_mtime_ns], np.int64)


def _read(path, endings, labelled):
    """({name: array}, time of the last change in seconds since the epoch)"""
    first_seen, lines = {}, []                              # {path: label}, and the line of each
    try:
        state = _state(path)
        for line, name, label in _entries(path, endings, labelled):
            if first_seen.setdefault(name, label) != label:
                raise _fault(path, line, '{!r} had the label {!r} before, and has {!r} here'.format(
                    name, first_seen[name], label))
            if len(first_seen) > len(lines):
                lines.append(line)
    except OSError as error:
        raise _unread(path, error) from error
    if not lines:
        raise UserError('--data_path: {} lists no images'.format(path))
    _check_files(path, list(first_seen), lines)
    classes = _in_order(set(first_seen.values()))
    label_of = {name: label for label, name in enumerate(classes)}
    made = {'labels': np.array([label_of[label] for label in first_seen.values()], np.int64), 'state': state,
            **Strings.of(first_seen).arrays('names'), **Strings.of(classes).arrays('classes')}
    return made, state[1] / 1e9


def _entries(path, endings, labelled):
    """(line number, path, label) of each row with content; labels are '' where they are not asked for."""
    rows = _rows(path)
    line, first = next(rows, (0, None))
    if first is None:
        return
    path_at, label_at, header = _columns(path, first, endings, labelled)
    if not header:
        yield line, first[path_at], _label(path, line, first, label_at)
    for line, cells in rows:
        if len(cells) != len(first):
            raise _fault(path, line, 'has {} column{} where the first row has {}; a path or label that holds the '
                         'separator goes in double quotes'.format(len(cells), 's'[:len(cells) - 1], len(first)))
        if not cells[path_at]:
            raise _fault(path, line, 'has no path')
        yield line, cells[path_at], _label(path, line, cells, label_at)


def _label(path, line, cells, label_at):
    if label_at is None:
        return ''
    if not cells[label_at]:
        raise _fault(path, line, 'has no label')
    return cells[label_at]


def _rows(path):
    """(number of its first line, cells without spaces around them) of each row that is not blank."""
    with open(path, encoding='utf-8-sig', errors='surrogateescape', newline='') as file:
        head = file.readline(1 << 16)
        if '\0' in head:
            raise _fault(path, 1, 'is no text in UTF-8; save it as CSV in UTF-8')
        file.seek(0)
        reader = csv.reader(file, delimiter=next((mark for mark in ',;\t' if mark in head), ','), strict=True)
        with progress_bar('reading {}'.format(path), 'rows', patience=remember.SLOW) as bar:
            while True:
                line = reader.line_num + 1
                try:
                    cells = [cell.strip() for cell in next(reader, [])]
                except csv.Error as error:
                    raise _fault(path, line, 'is no row of a CSV file ({})'.format(error)) from error
                if reader.line_num < line:
                    return
                if any('\0' in cell for cell in cells):
                    raise _fault(path, line, 'holds a byte that is 0')
                if line % 10000 == 0:
                    hang_detector.progress('the reading of {}'.format(one_line(path)))
                if any(cells):
                    yield line, cells
                bar.add()


def _columns(path, cells, endings, labelled):
    """(column of paths, column of labels or None, whether the first row is one of names)"""
    names = [cell.lower() for cell in cells]
    path_at = next((names.index(name) for name in PATHS if name in names), None)
    header = path_at is not None or not (cells[0].lower().endswith(endings)
                                         or os.path.isfile(os.path.join(os.path.dirname(path), cells[0])))
    path_at = path_at or 0
    if not labelled:
        return path_at, None, header
    others = [i for i in range(len(cells)) if i != path_at]
    label_at = next((names.index(name) for name in LABELS if header and name in names), None)
    if label_at is None and len(others) == 1:
        label_at = others[0]
    if not others:
        raise UserError('--data_path: {} has no labels: rows of path,label are needed here'.format(path))
    if label_at is None:
        raise _fault(path, 1, 'has {} columns and does not say which is what; call them path and label in a first row'
                     .format(len(cells)))
    return path_at, label_at, header


def _check_files(path, names, lines):
    """Raise UserError where one of the files that are looked for is missing."""
    chosen = np.unique(np.linspace(0, len(names) - 1, min(len(names), CHECKED)).astype(int))
    root = os.path.dirname(path)
    bar = progress_bar('looking for the images of {}'.format(path), 'images', len(chosen), remember.SLOW)
    missing = [i for i in bar.over(chosen) if not os.path.exists(os.path.join(root, names[i]))]
    if missing:
        first, more = missing[0], len(missing) - 1
        raise _fault(path, lines[first], '{} is missing{}; paths are relative to the folder of the CSV file'.format(
            os.path.join(root, names[first]), ', and so {} {} more of {:,} that were looked for'.format(
                'is' if more == 1 else 'are', more, len(chosen)) if more else ''))


def _in_order(labels):
    """Numbers by their value, names by their letters."""
    if all(re.fullmatch(r'-?[0-9]{1,18}', label) for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)


def _fault(path, line, words):
    return UserError('--data_path: {}, line {}: {}'.format(path, line, words))
