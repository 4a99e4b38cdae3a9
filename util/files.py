"""Files that are whole or not there: written beside their place, flushed to the disk, then renamed."""
import errno
import io
import os
import stat
import time
from contextlib import contextmanager, suppress


class _Sink:
    """Keeps the first error of writing for the end: PyTorch 1.8 and 1.11 abort the process when a write fails."""

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
        """For writers that ask for it; the block's end does it."""

    def seek(self, place):
        if self.error is None:
            self._file.seek(place)

    def check(self):
        """Raise the first error now, not at the end."""
        if self.error is not None:
            raise self.error


@contextmanager
def atomic_file(path):
    """A binary file to write to, which takes the place of `path` only when the block ends well.

    Raises:
        OSError: it could not be written, for want of room or permission; what was at `path` is still there.
    """
    temporary = '{}.tmp-{}'.format(path, os.getpid())
    try:
        with open(temporary, 'wb') as file:
            sink = _Sink(file)
            yield sink
            sink.check()
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.remove(temporary)
        raise
    folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    with suppress(OSError):         # makes the rename survive a power cut, where the file system can do that
        os.fsync(folder)
    os.close(folder)


def write_atomically(path, content):
    """Put bytes at `path`, whole or not at all."""
    with atomic_file(path) as file:
        file.write(content)


def open_regular(path, mode='rb', **options):
    """open() for regular files alone: opening a FIFO would wait for a writer, and a device can be read without end.

    Raises:
        OSError: the file cannot be opened, or is no regular file.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, 'not a regular file', path)
    return open(path, mode, **options)


class _WithoutNumber(io.BufferedReader):
    """A file that torch.load reads through Python: given its number, torch would first try it as a tar archive."""

    def fileno(self):
        raise io.UnsupportedOperation('fileno')


def regular_file(path):
    """open_regular to read bytes, for torch.load and others that should use the bytes alone."""
    return _WithoutNumber(open_regular(path, buffering=0))


def lines(path):
    """The whole lines of a text file; [] where there is none."""
    try:
        with open(path, encoding='utf-8') as file:
            return [line.rstrip('\n') for line in file if line.endswith('\n')]
    except FileNotFoundError:
        return []


def set_aside(path):
    """Rename a file or folder to `path` plus the time of its last change; returns the new name."""
    path = path.rstrip(os.sep)
    stem, ending = (path, '') if os.path.isdir(path) else os.path.splitext(path)
    base = '{}.{}'.format(stem, time.strftime('%Y%m%d-%H%M%S', time.localtime(os.path.getmtime(path))))
    aside, number = base + ending, 1
    while os.path.lexists(aside):
        number += 1
        aside = '{}-{}{}'.format(base, number, ending)
    os.rename(path, aside)
    return aside
