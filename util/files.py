"""Files that are whole or not there: written beside their place, flushed to the disk, then renamed."""
import os
from contextlib import contextmanager


@contextmanager
def atomic_file(path):
    """A binary file that takes the place of `path` only when the block ends well."""
    temporary = '{}.tmp-{}'.format(path, os.getpid())
    try:
        with open(temporary, 'wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise
    _sync_folder(os.path.dirname(os.path.abspath(path)))


def write_atomically(path, content):
    """Put bytes at `path`, whole or not at all."""
    with atomic_file(path) as file:
        file.write(content)


def lines(path):
    """The whole lines of a text file; [] where there is none."""
    try:
        with open(path, encoding='utf-8') as file:
            return [line.rstrip('\n') for line in file if line.endswith('\n')]
    except FileNotFoundError:
        return []


def _sync_folder(folder):
    """Make a rename survive a power cut, where the file system lets a folder be opened."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
