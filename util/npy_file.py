""".npy files whose number of rows is known only at the end: rows go to the disk as they come, none stays in memory."""
from contextlib import contextmanager

import numpy as np

from util.output_file import output_file

MAGIC = b'\x93NUMPY\x01\x00'        # and version 1.0 of the format (numpy.lib.format, NEP 1)
HEADER = 128                        # bytes, a multiple of 64


@contextmanager
def growing_array(path, shape, dtype):
    """What takes arrays (M, *shape) one after the other; at the block's end they are at `path`, as one array.

    Raises:
        UserError: see util.output_file.output_file.
    """
    with output_file(path) as file:
        rows = _Rows(file, np.dtype(dtype))
        file.write(bytes(HEADER))
        yield rows.add
        file.seek(0)
        file.write(header((rows.count, *shape), rows.dtype))


class _Rows:
    def __init__(self, file, dtype):
        self._file, self.dtype, self.count = file, dtype, 0

    def add(self, rows):
        self._file.write(np.ascontiguousarray(rows, self.dtype).tobytes())
        self._file.check()
        self.count += len(rows)


def header(shape, dtype):
    """The first HEADER bytes of an .npy file."""
    text = repr({'descr': dtype.str, 'fortran_order': False, 'shape': shape})
    length = HEADER - len(MAGIC) - 2
    return MAGIC + length.to_bytes(2, 'little') + text.ljust(length - 1).encode() + b'\n'
