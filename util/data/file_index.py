"""The image files below a folder or in a CSV file: arrays, which loader processes share, where they would copy lists.

`listing` is the one boundary around listing a data set: whatever goes wrong in it is a UserError that names the file.
"""
import csv
import os
import re
from contextlib import contextmanager
from functools import lru_cache

import numpy as np

from util.data import array_cache
from util.data.image_files import ARRAYS, without_arrays
from util.distributed import hang_detector
from util.errors import UserError
from util.files import open_regular
from util.log import progress_bar
from util.text import first_line, one_line

UNLABELLED = ['unlabelled']         # the classes of images that have none
NO_CSV = 'cannot be read as rows of path,label in UTF-8'
HEADERS = (['path'], ['path', 'label'])
CHECKED = 10000         # files, spread over all, of which it is seen before the work begins that they are there


@contextmanager
def listing(path, fault='cannot be listed'):
    """Turn whatever goes wrong in the block, while the data set at `path` is listed, into one UserError.

    A MemoryError too: a header that claims more bytes than there is memory is what raises it here.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError('--data_path: {} {} ({})'.format(
            getattr(error, 'filename', None) or path, fault, getattr(error, 'strerror', None) or first_line(error)
        )) from error


def encoded(names):
    """(N,) array of bytes of N file names, whose items os.fsdecode reads."""
    return np.array([os.fsencode(name) for name in names], np.bytes_)


class PathArray:
    """A sequence of paths.

    Args:
        root: the folder from which those of `names` lead that are relative.
        names: (N,) array as `encoded` makes.
    """

    def __init__(self, root, names):
        self.root, self._names = root, names

    def __len__(self):
        return len(self._names)

    def __getitem__(self, index):
        return os.path.join(self.root, os.fsdecode(self._names[index]))

    def relative(self, index):
        """A path from `root`, the same however it was written."""
        folder, name = os.path.split(os.fsdecode(self._names[index]))
        return os.path.normpath(os.path.join(_relative_folder(self.root, folder), name))


@lru_cache(maxsize=None)        # a look at the current directory for each image would take most of the time
def _relative_folder(root, folder):
    return os.path.relpath(os.path.join(root, folder) or os.curdir, root or os.curdir)


class FileIndex(PathArray):
    """The paths of the image files below `root`: each folder's own first, all in order of their names.

    Where there are none, .npy arrays count as such. `folders` are relative to `root`, which is the first, '';
    `folder_of` has the place in them of each file.
    Args:
        endings: of the names of image files, in small letters.
        own_files: whether those count that are in no subfolder.
    Raises:
        UserError: a folder cannot be listed.
    """

    def __init__(self, root, endings, own_files=True):
        with listing(root):
            found = array_cache.arrays(
                'list of files', root, lambda found: array_cache.state_of(root, _decoded(found['folders']), endings)[0],
                lambda: _listed(root, endings))
        first = 0 if own_files else np.count_nonzero(found['folder_of'] == 0)
        super().__init__(root, found['names'][first:])
        self.folders, self.folder_of = _decoded(found['folders']), found['folder_of'][first:]


def _decoded(names):
    return [os.fsdecode(name) for name in names]


def _listed(root, endings):
    """({name: array}, state and time of the last change) of the files below a folder; see remember.arrays."""
    folders, folder_of, names = [], [], []
    with progress_bar('list of files of {}'.format(root), 'images') as bar:
        for folder, subfolders, files in os.walk(root, onerror=_raise, followlinks=True):
            hang_detector.heartbeat('listing {}'.format(one_line(folder)))
            subfolders[:] = sorted(name for name in subfolders if not _leads_back(folder, name))
            images = sorted(name for name in files if name.lower().endswith((*endings, *ARRAYS)))
            inside = os.path.relpath(folder, root) if folders else ''
            folder_of += [len(folders)] * len(images)
            names += [os.path.join(inside, name) for name in images]
            folders.append(inside)
            bar.update(len(images))
    places = without_arrays(names)
    return {'names': encoded(names[place] for place in places), 'folders': encoded(folders),
            'folder_of': np.array([folder_of[place] for place in places], np.int32)}, array_cache.state_of(
                root, folders, endings)


def _leads_back(folder, name):
    """Whether an entry is a link to a folder that it lies in."""
    path = os.path.join(folder, name)
    return os.path.islink(path) and os.path.realpath(path) == os.path.commonpath(
        [os.path.realpath(folder), os.path.realpath(path)])


def _raise(error):
    raise error


def read_csv(path, labelled):
    """(Paths, class names, label of each path) of a CSV file: rows of path,label, in UTF-8, below a header or none.

    Paths are relative to the folder of the file; a row that is there twice counts once.
    Args:
        labelled: whether labels are asked for; else all are 0 and the names UNLABELLED.
    Raises:
        UserError: the file cannot be read, a row is not as it should be, has no label, or names a missing file.
    """
    label_of, columns = {}, 2 if labelled else None
    with listing(path, NO_CSV):
        for line, cells in _rows(path):
            columns = columns or len(cells)
            if columns > 2 or len(cells) != columns or not all(cells):
                raise ValueError('line {}: expected path,label; what holds a comma goes in double quotes'.format(line))
            label = cells[1] if labelled else UNLABELLED[0]
            if label_of.setdefault(cells[0], label) != label:
                raise ValueError('line {}: {!r} had another label before'.format(line, cells[0]))
        if not label_of:
            raise ValueError('it lists no images')
        paths = PathArray(os.path.dirname(path), encoded(label_of))
    for number in range(0, len(paths), len(paths) // CHECKED + 1):
        if not os.path.exists(paths[number]):
            raise UserError('--data_path: {}: {} is missing; paths are relative to the folder of the CSV file, and a '
                            'header, if any, is path,label'.format(path, paths[number]))
    found = set(label_of.values())
    numbers = all(re.fullmatch(r'-?[0-9]{1,18}', label) for label in found)
    classes = sorted(found, key=lambda label: (int(label) if numbers else 0, label))
    number_of = {name: number for number, name in enumerate(classes)}
    return paths, classes, np.array([number_of[label] for label in label_of.values()], np.int64)


def has_labels(path):
    """Whether a CSV file has more than paths, by its first row; UserError where it cannot be read."""
    with listing(path, NO_CSV):
        return len(next(_rows(path), (1, ['']))[1]) > 1


def _rows(path):
    """(number of its last line, cells without spaces around them) of each row below the header that is not blank."""
    with open_regular(path, 'r', encoding='utf-8-sig', errors='surrogateescape', newline='') as file:
        reader, first = csv.reader(file, strict=True), True
        try:
            for row in reader:
                cells = [cell.strip() for cell in row]
                if reader.line_num % 10000 == 0:
                    hang_detector.heartbeat('reading {}'.format(one_line(path)))
                if any(cells) and not (first and [cell.lower() for cell in cells] in HEADERS):
                    yield reader.line_num, cells
                first = first and not any(cells)
        except csv.Error as error:
            raise ValueError('line {}: {}'.format(reader.line_num, error)) from error
