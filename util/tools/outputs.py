"""Outputs of the tools: files and folders appear when they are complete, and an earlier file is renamed."""
import errno
import os
import shutil
import sys
import tempfile
from contextlib import contextmanager, suppress
from typing import BinaryIO, Iterator

from util.errors import UserError
from util.files import set_aside
from util.text import one_line


def is_special(path: str) -> bool:
    """Whether an output at `path` goes into a device, a FIFO or an open file, which stays, instead of a new file."""
    return path.startswith(('/dev/std', '/dev/fd/', '/proc/self/fd/')) or os.path.exists(path) and not (
        os.path.isfile(path) or os.path.isdir(path))


@contextmanager
def output_path(path: str) -> Iterator[str]:
    """Yield a path for a new file or folder, which becomes `path` when the block succeeds; an earlier file is renamed.

    Raises:
        UserError: `path` cannot be written, or is a folder with files.
    """
    target, special = os.path.realpath(path), is_special(path)
    if os.path.isdir(target) and os.listdir(target):
        raise UserError('{}: is a folder with files; choose another name'.format(path))
    folder, name = os.path.split(target)
    with _write_errors(path):
        if not special:
            os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix='{}.tmp-{}-'.format(name, os.getpid()),
                                         dir=None if special else folder) as temporary:
            new = os.path.join(temporary, name)
            yield new
            if special:
                with open(new, 'rb') as source, open_output(path) as file:
                    shutil.copyfileobj(source, file)
                return
            if os.path.isfile(target):
                print('earlier results kept in {}'.format(one_line(set_aside(target))), file=sys.stderr)
            os.rename(new, target)


@contextmanager
def open_output(path: str) -> Iterator[BinaryIO]:
    """Open an output file for writing bytes: a new one, see output_path, or a device or FIFO."""
    if not is_special(path):
        with output_path(path) as new, open(new, 'wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        return
    # Standard output, unless closed, goes on at its position in a file. Not open(), which would seek: a FIFO cannot. A
    # reader that closes a pipe, as `| head`, has enough.
    stdout = path == '/dev/stdout' and sys.stdout
    with _write_errors(path), suppress(BrokenPipeError), \
            os.fdopen(os.dup(1) if stdout else os.open(path, os.O_WRONLY | os.O_APPEND), 'wb') as file:
        yield file


@contextmanager
def _write_errors(path):
    """Report an OSError as that of the output, unless it is that of a system without files or memory."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise
        raise UserError('{}: cannot be written ({})'.format(path, error.strerror or error)) from error
