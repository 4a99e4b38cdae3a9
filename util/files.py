"""Atomic writes, and opening regular files only."""
import errno
import os
import stat
import time
from contextlib import contextmanager, suppress
from typing import IO, Iterator, List

from util.errors import UserError
from util.text import first_line


class _Writer:
    """A file that keeps its first write error as `error`: PyTorch 1.8 and 1.11 abort the process if a write fails."""

    def __init__(self, file):
        self._file, self.error = file, None

    def write(self, data):
        if self.error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self):
        """Nothing: atomic_file flushes at the end."""


@contextmanager
def atomic_file(path: str) -> Iterator[_Writer]:
    """A binary file to write, written beside `path`, flushed to the disk and renamed when the block succeeds.

    An OSError (disk full, no permission) leaves `path` unchanged.
    """
    # Belongs to this process: no other meets it, not even one that gets its number after a kill.
    temporary = '{}.tmp-{}-{:x}'.format(path, os.getpid(), time.time_ns())
    try:
        with open(temporary, 'xb') as file:
            writer = _Writer(file)
            yield writer
            if writer.error is not None:
                raise writer.error
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.remove(temporary)
        raise
    folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    with suppress(OSError):         # the rename survives a power failure, where the file system supports it
        os.fsync(folder)
    os.close(folder)


def write_atomically(path: str, content: bytes) -> None:
    """Write a file atomically."""
    with atomic_file(path) as file:
        file.write(content)


def open_regular(path: str, mode: str = 'rb', **options) -> IO:
    """open() for regular files only, else an OSError: a FIFO would block, and a device may never end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, 'not a regular file', path)
    return open(path, mode, **options)


def lines(path: str) -> List[str]:
    """The complete lines of a text file; [] if it does not exist; UserError if it is something else."""
    try:
        with open_regular(path, 'r', encoding='utf-8') as file:
            return [line.rstrip('\n') for line in file if line.endswith('\n')]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UserError('{}: cannot be read ({}); rename or remove it'.format(path, first_line(error))) from error


def set_aside(path: str) -> str:
    """Rename a file or folder by appending the time of its last change; returns the new name."""
    path = path.rstrip(os.sep)
    stem, ending = (path, '') if os.path.isdir(path) else os.path.splitext(path)
    date = time.strftime('%Y%m%d-%H%M%S', time.localtime(os.lstat(path).st_mtime))
    aside = unused('{}.{}'.format(stem, date), ending)
    os.rename(path, aside)
    return aside


def unused(stem: str, ending: str = '') -> str:
    """`stem` + `ending`, with a number between them if that exists already."""
    path, number = stem + ending, 1
    while os.path.lexists(path):
        number += 1
        path = '{}-{}{}'.format(stem, number, ending)
    return path
