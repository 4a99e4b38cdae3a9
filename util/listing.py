"""The image files below a folder, in arrays: loader processes share these, where they would copy a list of strings.

`listing` is the one boundary around listing a data set: whatever goes wrong in it is a UserError that names the file.
"""
import os
from contextlib import contextmanager

import numpy as np

from util import hang_detector, remember
from util.errors import UserError, first_line, one_line
from util.images import ARRAYS, without_arrays
from util.progress_bar import progress_bar

_TEXT, _EDGES = '_text', '_edges'


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


def arrays_of(*names):
    """Names of the arrays that Strings of these names consist of."""
    return [name + part for name in names for part in (_TEXT, _EDGES)]


class Strings:
    """A sequence of file names, in one array of bytes and one of the places where names begin and the last one ends."""

    def __init__(self, text, edges):
        self.text, self.edges = text, edges

    @classmethod
    def of(cls, strings):
        encoded = [os.fsencode(string) for string in strings]
        return cls(np.array(bytearray(b''.join(encoded)), np.uint8),
                   np.cumsum([0] + [len(word) for word in encoded], dtype=np.int64))

    @classmethod
    def found(cls, arrays, name):
        """Those that `arrays` gave; ValueError where the arrays are not such."""
        text, edges = arrays[name + _TEXT], arrays[name + _EDGES]
        if (text.dtype, text.ndim, edges.dtype, edges.ndim) != (np.uint8, 1, np.int64, 1) or not len(edges):
            raise ValueError(name)
        return cls(text, edges)

    def arrays(self, name):
        """{name of an array: array}"""
        return {name + _TEXT: self.text, name + _EDGES: self.edges}

    def __len__(self):
        return len(self.edges) - 1

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(index)
        return os.fsdecode(self.text[self.edges[index]:self.edges[index + 1]].tobytes())

    def without_first(self, count):
        return Strings(self.text, self.edges[count:])


class Listing:
    """A sequence of the paths of the image files below `root`: each folder's own first, all in order of their names.

    Where there are none, .npy arrays count as such.
    Args:
        endings: of the names of image files, in small letters.
        own_files: whether those count that are in no subfolder.
    Raises:
        UserError: a folder cannot be listed.
    """

    def __init__(self, root, endings, own_files=True):
        self.root, self._endings = root, list(endings)
        names = 'folder_of', 'changed', *arrays_of('endings', 'folders', 'names')
        with listing(root):
            found = remember.arrays('list of files', root, names, self._current, self._listed)
        self.folders = list(Strings.found(found, 'folders'))    # relative to root, which is the first, ''
        first = 0 if own_files else np.count_nonzero(found['folder_of'] == 0)
        self.folder_of = found['folder_of'][first:]             # of each file: index in `folders`
        self._names = Strings.found(found, 'names').without_first(first)

    def __len__(self):
        return len(self._names)

    def __getitem__(self, index):
        return os.path.join(self.root, self.relative(index))

    def relative(self, index):
        """A path below `root`."""
        return os.path.join(self.folders[self.folder_of[index]], self._names[index])

    def _current(self, found):
        """Whether no folder has changed since; a file that is only written anew changes none."""
        folders = Strings.found(found, 'folders')
        return list(Strings.found(found, 'endings')) == self._endings and all(
            _changed(os.path.join(self.root, folder)) == changed for folder, changed in zip(folders, found['changed']))

    def _listed(self):
        folders, changed, folder_of, names = [], [], [], []
        with progress_bar('list of files of {}'.format(self.root), 'images') as bar:
            for folder, subfolders, files in os.walk(self.root, onerror=_raise, followlinks=True):
                hang_detector.progress('the listing of {}'.format(one_line(folder)))
                subfolders[:] = sorted(name for name in subfolders if not _leads_back(folder, name))
                images = sorted(name for name in files if name.lower().endswith((*self._endings, *ARRAYS)))
                folder_of += [len(folders)] * len(images)
                names += images
                changed.append(_changed(folder))
                folders.append(os.path.relpath(folder, self.root) if folders else '')
                bar.update(len(images))
        places = without_arrays(names)
        made = {'folder_of': np.array([folder_of[place] for place in places], np.int32),
                'changed': np.array(changed, np.int64), **Strings.of(self._endings).arrays('endings'),
                **Strings.of(folders).arrays('folders'), **Strings.of([names[i] for i in places]).arrays('names')}
        return made, max(changed) / 1e9


def _leads_back(folder, name):
    """Whether an entry is a link to a folder that it lies in."""
    path = os.path.join(folder, name)
    return os.path.islink(path) and os.path.join(os.path.realpath(folder), '').startswith(
        os.path.join(os.path.realpath(path), ''))


def _changed(folder):
    """When a folder's entries changed last, in ns since the epoch."""
    return os.stat(folder).st_mtime_ns


def _raise(error):
    raise error
