"""Locks between processes, by filelock: held until the block or the process ends, however it ends."""
import fcntl
import os
import tempfile
import time
from contextlib import contextmanager

from filelock import FileLock, Timeout

from util.log import logger


@contextmanager
def file_lock(path, patience=float('inf'), waiting=lambda: None):
    """Hold the lock at `path`, a file that stays; where the file system has no locks, warn and continue without.

    Args:
        patience: seconds to wait for another process that holds it; waiting: called about once a second meanwhile.
    Raises:
        filelock.Timeout: it still does.
        OSError: the folder cannot be written.
    """
    lock, end, usable = FileLock(path), time.monotonic() + patience, _has_locks(os.path.dirname(path))
    while usable and not lock.is_locked:
        try:
            lock.acquire(timeout=min(patience, 1.))
        except Timeout:
            if time.monotonic() >= end:
                raise
            waiting()
    try:
        yield
    finally:
        lock.release()


def _has_locks(folder):
    # Asked first, since filelock 3.12 takes any error for a lock that another process holds, and would wait.
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            logger.warning('warning: %s: its file system has no locks (%s); nothing keeps two processes apart there',
                           folder, error.strerror)
            return False
