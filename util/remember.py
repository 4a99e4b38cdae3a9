"""Arrays that take long to make, such as the list of a million files: made once, and kept until they are out of date.

They are kept in the user's cache directory, $XDG_CACHE_HOME/mae or ~/.cache/mae. Of several processes of a machine that
need the same, one makes them while the others wait.
"""
import fcntl
import hashlib
import io
import os
import time
import zipfile
from contextlib import contextmanager

import numpy as np

from util import hang_detector
from util.files import write_atomically
from util.log import logger

SLOW = 1.           # seconds; what takes less to make is not kept
SETTLED = 2.        # seconds; what has changed less than so before it was looked at may change again unnoticed


def arrays(what, source, names, current, make, beside=None):
    """{name: numpy array}, from where they are kept or newly made.

    Args:
        what, source: words for the log, and the path that the arrays tell of.
        names: of the arrays.
        current: {name: array} that was kept -> whether it holds still.
        make: () -> ({name: array}, newest change of the source in seconds since the epoch).
        beside: file that may hold the arrays, looked at first.
    """
    name = hashlib.sha256(os.fsencode('{}:{}'.format(what, os.path.realpath(source)))).hexdigest()[:32] + '.npz'
    path = os.path.join(folder(), name)
    kept = _current((beside, path), names, current)
    if kept is None:
        with _turn(name):
            kept = _current((path,), names, current)    # another process may have made it meanwhile
            if kept is None:
                return _made(what, source, make, path)
    logger.info('%s of %s: as remembered in %s', what, source, kept[1])
    return kept[0]


def folder():
    """Where arrays are kept."""
    return os.path.join(os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'), 'mae')


def _current(paths, names, current):
    """(arrays, path) of the first of the files that holds still; None where none does."""
    for path in filter(None, paths):
        try:
            with np.load(path, allow_pickle=False) as file:
                found = {name: file[name] for name in names}
            if current(found):
                return found, path
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):     # missing, damaged, of another kind
            pass
    return None


def _made(what, source, make, path):
    begun, clock = time.time(), time.monotonic()
    made, changed = make()
    if time.monotonic() - clock > SLOW and changed < begun - SETTLED:
        try:
            save(path, made)
            logger.info('%s of %s: remembered in %s', what, source, path)
        except OSError as error:
            logger.info('%s of %s: cannot be remembered in %s (%s)', what, source, path, error.strerror)
    return made


def save(path, made):
    """Write {name: array} to a file, whole or not at all.

    Raises:
        OSError: there is no room, or no permission.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    file = io.BytesIO()
    np.savez(file, **made)
    write_atomically(path, file.getbuffer())


def _locked(handle, number):
    """Whether this process has got the lock on that byte of a file."""
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
    except (BlockingIOError, PermissionError):      # how POSIX lets a system say that another has it
        return False
    return True


@contextmanager
def _turn(name):
    """One process of the machine at a time for a name; without a cache directory or locks, each for itself."""
    try:
        os.makedirs(folder(), exist_ok=True)
        handle = os.open(os.path.join(folder(), 'lock'), os.O_CREAT | os.O_RDWR, 0o600)
    except OSError:
        yield
        return
    try:
        try:
            while not _locked(handle, int(name[:7], 16)):       # a byte of its own for each name
                hang_detector.progress('the wait for another process that lists the same images')
                time.sleep(.1)
        except OSError:
            pass
        yield
    finally:
        os.close(handle)
