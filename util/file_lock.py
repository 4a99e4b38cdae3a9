"""Locks between processes, by filelock: held until the block or the process ends, however it ends.

A run locks its output folder, where run.lock names the process: host, pid and start.
"""
import fcntl
import json
import os
import socket
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress

from filelock import FileLock, Timeout

from util.errors import UserError
from util.log import logger

OWNER, LOCKED = 'run.lock', '.lock'     # two files, since filelock 3.12 empties the one that it locks
PATIENCE = 10.              # seconds; forked loader processes of a run that was killed hold its lock until they end


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


class RunLock:
    """Lock of an output folder, which admits one run: held from its construction until `release`.

    Raises:
        UserError: another run holds it; or the folder cannot be written.
    """

    def __init__(self, folder: str):
        self._folder, self._held = folder, ExitStack()
        owner = os.path.join(folder, OWNER)
        try:
            self._held.enter_context(file_lock(os.path.join(folder, LOCKED), PATIENCE))
            with open(owner, 'w', encoding='utf-8') as file:
                json.dump({'host': socket.gethostname(), 'pid': os.getpid(),
                           'start': time.strftime('%Y-%m-%d %H:%M:%S')}, file)
        except Timeout:
            who = 'another run'
            with suppress(OSError, ValueError, LookupError, TypeError), open(owner, encoding='utf-8') as file:
                who = 'a run (process {pid} on {host}, since {start})'.format(**json.load(file))
            raise UserError('--output_dir {}: in use by {}; give another folder, or end that run first'.format(
                folder, who)) from None
        except OSError as error:
            self.release()
            raise UserError('--output_dir {}: cannot be written ({})'.format(folder, error.strerror)) from error

    def release(self):
        """Unlock the folder."""
        with suppress(OSError):
            os.remove(os.path.join(self._folder, OWNER))
        self._held.close()
