"""One output folder, one run: a lock that ends with its process, and run.lock, which names that process."""
import json
import os
import socket
import time
from contextlib import ExitStack, suppress

from filelock import Timeout

from util.errors import UserError
from util.file_lock import file_lock

NAME = 'run.lock'           # host, pid and start of the run; filelock 3.12 empties the file that it locks: another one
LOCKED = '.lock'
PATIENCE = 10.              # seconds; forked loader processes of a run that was killed hold its lock until they end


class RunLock:
    """Held from its making until `release`.

    Raises:
        UserError: another run holds it; or the folder cannot be written.
    """

    def __init__(self, folder):
        self._folder, self._held = folder, ExitStack()
        try:
            self._held.enter_context(file_lock(os.path.join(folder, LOCKED), PATIENCE))
            with open(os.path.join(folder, NAME), 'w', encoding='utf-8') as file:
                json.dump({'host': socket.gethostname(), 'pid': os.getpid(),
                           'start': time.strftime('%Y-%m-%d %H:%M:%S')}, file)
        except Timeout:
            raise UserError('--output_dir {}: in use by a run ({}); give another folder, or end that run first'.format(
                folder, _owner(folder))) from None
        except OSError as error:
            self.release()
            raise UserError('--output_dir {}: cannot be written ({})'.format(folder, error.strerror)) from error

    def release(self, folder=None):
        """Unlock the folder, which may have been renamed to `folder`."""
        with suppress(OSError):
            os.remove(os.path.join(folder or self._folder, NAME))
        self._held.close()


def check(folder):
    """Raise UserError where a run holds `folder`."""
    if os.path.isdir(folder):
        RunLock(folder).release()


def _owner(folder):
    try:
        with open(os.path.join(folder, NAME), encoding='utf-8') as file:
            owner = json.load(file)
        return 'process {pid} on {host}, since {start}'.format(**owner)
    except (OSError, ValueError, LookupError, TypeError):
        return 'that does not say who it is'
