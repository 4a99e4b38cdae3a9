"""Arrays that take long to make, such as the list of a million files: made once, and kept until they are out of date.

They are kept in the user's cache directory, $XDG_CACHE_HOME/mae or ~/.cache/mae. Of several processes of a machine that
need the same, one makes them while the others wait.
"""
import hashlib
import io
import os
import time
from contextlib import ExitStack, suppress

import numpy as np

from util.distributed import hang_detector
from util.file_lock import file_lock
from util.files import open_regular, write_atomically
from util.log import logger

SLOW = 1.           # seconds; what takes less to make is not kept
SETTLED = 2.        # seconds; what has changed less than so before it was looked at may change again unnoticed


def arrays(what, source, state, make, beside=None):
    """{name: numpy array}, from where they are kept or newly made.

    Args:
        what, source: words for the log, and the path that the arrays tell of.
        state: {name: array} that was kept -> the text of `make`, where it holds still.
        make: () -> ({name: array}, (text that differs when the source has changed, when that was last in seconds since
            the epoch)).
        beside: file that may hold the arrays, looked at first.
    """
    folder = os.path.join(os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'), 'mae')
    name = _digest(what, os.path.realpath(source))[:32]
    path = os.path.join(folder, name + '.npz')
    kept = _current((beside, path), state)
    if kept is None:
        with ExitStack() as turn:
            with suppress(OSError):                     # without a cache directory, each process for itself
                os.makedirs(folder, exist_ok=True)
                turn.enter_context(file_lock(os.path.join(folder, 'lock-' + name[:2]),      # 256 at most
                                             waiting=lambda: hang_detector.heartbeat('waiting for the ' + what)))
            kept = _current((path,), state)             # another process may have made it meanwhile
            if kept is None:
                begun, clock = time.time(), time.monotonic()
                made, (text, changed) = make()
                if time.monotonic() - clock > SLOW and changed < begun - SETTLED:
                    try:
                        save(path, made, text)
                        logger.info('%s of %s: remembered in %s', what, source, path)
                    except OSError as error:
                        logger.info('%s of %s: cannot be remembered in %s (%s)', what, source, path, error.strerror)
                return made
    logger.info('%s of %s: as remembered in %s', what, source, kept[1])
    return kept[0]


def state_of(root, names, *more):
    """(text that differs when a file or folder below `root` has changed, or `more`; time of the last change in s)."""
    found = [os.stat(os.path.join(root, name)) for name in names]
    sizes, changed = [status.st_size for status in found], [status.st_mtime_ns for status in found]
    return _digest(names, *more, sizes, changed), max(changed) / 1e9


def _digest(*values):
    return hashlib.sha256(repr(values).encode()).hexdigest()


def _current(paths, state):
    """(arrays, path) of the first of the files that holds still; None where none does."""
    for path in filter(None, paths):
        with suppress(Exception):       # it is missing or damaged
            with open_regular(path) as opened, np.load(opened, allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
            if str(found.pop('state')) == state(found):
                return found, path
    return None


def save(path, made, text):
    """Write {name: array} and the text of their source's state to a file, whole or not at all.

    Raises:
        OSError: there is no room, or no permission.
    """
    file = io.BytesIO()
    np.savez(file, state=text, **made)
    write_atomically(path, file.getbuffer())
