"""Locks between processes (filelock), held until the block or the process ends, and the lock of an output folder."""
import fcntl
import json
import os
import socket
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import Iterator

from filelock import FileLock, Timeout

from util.errors import UserError
from util.files import open_regular, write_atomically
from util.log import logger

OWNER, LOCKED = 'run.lock', '.lock'     # two files, since filelock 3.12 truncates the one that it locks
LOCK_TIMEOUT = 10.          # seconds; loader processes of a killed run hold its lock until they end


@contextmanager
def file_lock(path: str, timeout: float = -1) -> Iterator[None]:
    """Hold the lock at `path`, a file that remains; without file system support, warn and run unlocked.

    Raises:
        filelock.Timeout: another process still holds it after `timeout` seconds; -1: wait forever.
        OSError: the folder is not writable.
    """
    lock = FileLock(path)
    if _supports_locks(os.path.dirname(path)):
        lock.acquire(timeout)
    try:
        yield
    finally:
        lock.release()


def _supports_locks(folder):
    # filelock 3.12 would take any error for a lock that another process holds, and wait.
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            logger.warning('warning: %s: file system without locks (%s); concurrent processes are not detected',
                           folder, error.strerror)
            return False


class RunLock:
    """Exclusive lock of an output folder, which it makes, until `release`; run.lock names host, pid and start time.

    Raises:
        UserError: another run holds it, or the folder cannot be made or written.
    """

    def __init__(self, folder: str):
        self._folder, self._held = folder, ExitStack()
        owner = os.path.join(folder, OWNER)
        try:
            os.makedirs(folder, exist_ok=True)
            self._held.enter_context(file_lock(os.path.join(folder, LOCKED), LOCK_TIMEOUT))
            write_atomically(owner, json.dumps({'host': socket.gethostname(), 'pid': os.getpid(),
                                                'start': time.strftime('%Y-%m-%d %H:%M:%S')}).encode())
        except Timeout:
            run = 'another run'
            with suppress(OSError, ValueError, LookupError, TypeError), open_regular(owner) as file:
                run = 'a run (process {pid} on {host}, since {start})'.format(**json.load(file))
            raise UserError('--output_dir {}: in use by {}; choose another folder or stop that run'.format(
                folder, run)) from None
        except OSError as error:
            self.release()
            raise UserError('--output_dir {}: cannot be written ({})'.format(folder, error.strerror)) from error

    def release(self) -> None:
        """Unlock the folder."""
        with suppress(OSError):
            os.remove(os.path.join(self._folder, OWNER))
        self._held.close()
