"""Files that the user has named: written whole, or one line says why not."""
import os
import sys
from contextlib import contextmanager

from util.errors import UserError, one_line
from util.files import atomic_file
from util.output_dir import set_aside


@contextmanager
def output_file(path):
    """A binary file to write to, at `path` when the block ends well, and what was there has another name; its `check`
    tells at once what a disk refuses.

    Raises:
        UserError: it cannot be written; what was at `path` is still there.
    """
    try:
        with atomic_file(path) as file:
            yield file
            file.check()
            if os.path.lexists(path):
                print('earlier results kept in {}'.format(one_line(set_aside(path))), file=sys.stderr)
    except OSError as error:
        raise UserError('{}: cannot be written ({})'.format(path, error.strerror or error)) from error
