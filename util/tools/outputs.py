"""Outputs of the tools: files and folders appear when they are complete, and an earlier file is renamed."""
import os
import shutil
import sys
import tempfile
from contextlib import contextmanager
from typing import BinaryIO, Iterator, Tuple

from util.errors import UserError
from util.files import set_aside
from util.text import one_line


def is_special(path: str) -> bool:
    """Whether an output at `path` goes to a device, a FIFO or an open file, such as /dev/stdout."""
    return _follow_links(path)[1]


@contextmanager
def output_path(path: str) -> Iterator[str]:
    """Path for a new file or folder, in a temporary folder, which becomes `path` when the block succeeds.

    An earlier file is renamed. A device or FIFO stays, and gets the content.
    Raises:
        UserError: `path` cannot be written, or is a folder that is not empty.
    """
    try:
        target, special = _follow_links(path)
        folder, name = os.path.split(os.path.abspath(target))
        if not special:
            os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix='{}.tmp-{}-'.format(name, os.getpid()),
                                         dir=None if special else folder) as temporary:
            new = os.path.join(temporary, name)
            yield new
            if special:
                with open(new, 'rb') as source, _open_special(target) as file:
                    shutil.copyfileobj(source, file)
                return
            if os.path.isfile(target):
                print('earlier results kept in {}'.format(one_line(set_aside(target))), file=sys.stderr)
            os.rename(new, target)
    except OSError as error:
        raise UserError('{}: cannot be written ({})'.format(path, error.strerror or error)) from error


@contextmanager
def open_output(path: str) -> Iterator[BinaryIO]:
    """Open an output file for writing bytes: as output_path does, or a device or FIFO itself."""
    target, special = _follow_links(path)
    if special:
        try:
            with _open_special(target) as file:
                yield file
        except OSError as error:
            raise UserError('{}: cannot be written ({})'.format(path, error.strerror or error)) from error
    else:
        with output_path(path) as new, open(new, 'wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())


def _follow_links(path: str) -> Tuple[str, bool]:
    """What an output at `path` goes to, and whether that is a device, a FIFO or an open file, such as /dev/stdout."""
    for _ in range(40):             # at most as many as the system follows: a loop is an error when it is opened
        if not os.path.islink(path):
            break
        if os.path.realpath(os.path.dirname(path)).startswith('/proc/'):
            return path, True
        path = os.path.join(os.path.dirname(path), os.readlink(path))
    return path, os.path.lexists(path) and not (os.path.isfile(path) or os.path.isdir(path))


def _open_special(path: str) -> BinaryIO:
    # By append, which keeps what a redirected standard output holds; open() would first seek, which a FIFO cannot.
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND), 'wb')
