"""Images that a CSV file lists: rows of path,label, in UTF-8, below a header of these words or without one.

Pre-training needs no labels: rows of a path alone will do. Paths are relative to the folder of the file.
"""
import csv
import os
import re

import numpy as np

from util import hang_detector
from util.errors import UserError, one_line
from util.files import open_regular
from util.listing import Paths, encoded, listing

HEADERS = (['path'], ['path', 'label'])
CHECKED = 10000         # files, spread over all, of which it is seen before the work begins that they are there


def read(path, labelled):
    """(util.listing.Paths, class names, label of each path) of a CSV file.

    A row that is there twice counts once.
    Args:
        labelled: whether labels are asked for; else all are 0 and the name is 'unlabelled'.
    Raises:
        UserError: the file cannot be read, a row is not as it should be, has no label, or names a missing file.
    """
    label_of, columns = {}, None
    with listing(path, 'cannot be read as CSV in UTF-8'):
        for line, cells in _rows(path):
            columns = columns or len(cells)
            if columns > 2 or len(cells) != columns or not all(cells):
                raise _fault(path, line, 'expected path,label; where either holds a comma, it goes in double quotes')
            if labelled and columns == 1:
                raise _fault(path, line, 'has no labels: rows of path,label are needed here')
            label = cells[1] if labelled else 'unlabelled'
            if label_of.setdefault(cells[0], label) != label:
                raise _fault(path, line, '{!r} had the label {!r} before, and has {!r} here'.format(
                    cells[0], label_of[cells[0]], label))
        if not label_of:
            raise UserError('--data_path: {} lists no images'.format(path))
        paths = Paths(os.path.dirname(path), encoded(label_of))
    for number in range(0, len(paths), len(paths) // CHECKED + 1):
        if not os.path.exists(paths[number]):
            raise UserError('--data_path: {}: {} is missing; paths are relative to the folder of the CSV file, and a '
                            'header, if any, is path,label'.format(path, paths[number]))
    classes = _in_order(set(label_of.values()))
    number_of = {name: number for number, name in enumerate(classes)}
    return paths, classes, np.array([number_of[label] for label in label_of.values()], np.int64)


def has_labels(path):
    """Whether a CSV file has more than paths, by its first row; UserError where it cannot be read."""
    with listing(path, 'cannot be read as CSV in UTF-8'):
        return len(next(_rows(path), (1, ['']))[1]) > 1


def _rows(path):
    """(number of its last line, cells without spaces around them) of each row below the header that is not blank."""
    with open_regular(path, 'r', encoding='utf-8-sig', errors='surrogateescape', newline='') as file:
        reader, first = csv.reader(file, strict=True), True
        try:
            for row in reader:
                cells = [cell.strip() for cell in row]
                if reader.line_num % 10000 == 0:
                    hang_detector.progress('the reading of {}'.format(one_line(path)))
                if any(cells) and not (first and [cell.lower() for cell in cells] in HEADERS):
                    yield reader.line_num, cells
                first = first and not any(cells)
        except csv.Error as error:
            raise _fault(path, reader.line_num, error) from error


def _in_order(labels):
    """Numbers by their value, names by their letters."""
    if all(re.fullmatch(r'-?[0-9]{1,18}', label) for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)


def _fault(path, line, words):
    return UserError('--data_path: {}, line {}: {}'.format(path, line, words))
