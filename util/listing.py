"""The image files below a folder, in arrays: loader processes share these, where they would copy a list of strings.

`listing` is the one boundary around listing a data set: whatever goes wrong in it is a UserError that names the file.
"""
import os
from contextlib import contextmanager
from functools import lru_cache

import numpy as np

from util import hang_detector, remember
from util.errors import UserError, first_line, one_line
from util.images import ARRAYS, without_arrays
from util.log import progress_bar


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


class Paths:
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


class Listing(Paths):
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
            found = remember.arrays('list of files', root, lambda found: _state(root, found['folders'], endings)[0],
                                    lambda: _listed(root, endings))
        first = 0 if own_files else np.count_nonzero(found['folder_of'] == 0)
        super().__init__(root, found['names'][first:])
        self.folders, self.folder_of = [os.fsdecode(folder) for folder in found['folders']], found['folder_of'][first:]


def _state(root, folders, endings):
    """(text that differs when an entry of a folder has come, gone or been renamed, time of the last such change in s).
    """
    changed = [os.stat(os.path.join(root, os.fsdecode(folder))).st_mtime_ns for folder in folders]
    return remember.digest(endings, changed), max(changed) / 1e9


def _listed(root, endings):
    """({name: array}, state and time of the last change) of the files below a folder; see remember.arrays."""
    folders, folder_of, names = [], [], []
    with progress_bar('list of files of {}'.format(root), 'images') as bar:
        for folder, subfolders, files in os.walk(root, onerror=_raise, followlinks=True):
            hang_detector.progress('the listing of {}'.format(one_line(folder)))
            subfolders[:] = sorted(name for name in subfolders if not _leads_back(folder, name))
            images = sorted(name for name in files if name.lower().endswith((*endings, *ARRAYS)))
            inside = os.path.relpath(folder, root) if folders else ''
            folder_of += [len(folders)] * len(images)
            names += [os.path.join(inside, name) for name in images]
            folders.append(inside)
            bar.update(len(images))
    places = without_arrays(names)
    return {'names': encoded(names[place] for place in places), 'folders': encoded(folders),
            'folder_of': np.array([folder_of[place] for place in places], np.int32)}, _state(root, folders, endings)


def _leads_back(folder, name):
    """Whether an entry is a link to a folder that it lies in."""
    path = os.path.join(folder, name)
    return os.path.islink(path) and os.path.join(os.path.realpath(folder), '').startswith(
        os.path.join(os.path.realpath(path), ''))


def _raise(error):
    raise error
