"""One output folder, one run: a lock file with host and pid, which a run that was killed does not hold for ever."""
import json
import os
import socket
import threading
import time

from util.errors import UserError
from util.log import logger

NAME = 'run.lock'
SIGN_OF_LIFE = 10.          # seconds between two of a living run
LOST = 45.                  # seconds without one after which a run on another host counts as dead


class RunLock:
    """Held from its making until `release`.

    Raises:
        UserError: another run that is alive holds it; or the folder cannot be written.
    """

    def __init__(self, folder):
        self._path = os.path.join(folder, NAME)
        self._owner = dict(_identity(), begun=time.strftime('%Y-%m-%d %H:%M:%S'))
        check(folder)
        self._take()
        self._over = threading.Event()
        threading.Thread(target=self._live, name='lock', daemon=True).start()

    def _take(self):
        try:
            handle = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            raise UserError(_refusal(self._path, _read(self._path) or {})) from None
        except OSError as error:
            raise _unwritable(self._path, error) from error
        try:
            with open(handle, 'w', encoding='utf-8') as file:
                json.dump(self._owner, file)
        except OSError as error:
            os.remove(self._path)
            raise _unwritable(self._path, error) from error

    def _live(self):
        while not self._over.wait(SIGN_OF_LIFE):
            try:
                os.utime(self._path)
            except OSError:
                pass                    # a disk that is full or gone for a while is told by whoever saves

    def release(self, folder=None):
        """Give the folder free, which may have been renamed to `folder`."""
        self._over.set()
        path = os.path.join(folder or os.path.dirname(self._path), NAME)
        if _read(path) == self._owner:
            os.remove(path)


def check(folder):
    """Raise UserError where a run that is alive holds `folder`; remove the lock of a dead one, with a line."""
    path = os.path.join(folder, NAME)
    owner = _read(path)
    if owner is None:
        return
    if _is_alive(owner, path):
        raise UserError(_refusal(path, owner))
    logger.info('%s: its run (process %s on %s) is no more', path, owner.get('pid'), owner.get('host'))
    _remove(path, owner)


def _remove(path, owner):
    """Remove the lock of a dead run, but not one that another run has put in its place meanwhile."""
    aside = '{}.dead-{}-{}'.format(path, socket.gethostname(), os.getpid())
    try:
        os.rename(path, aside)
        if _read(aside) != owner:
            os.rename(aside, path)
            raise UserError(_refusal(path, _read(path) or {}))
        os.remove(aside)
    except FileNotFoundError:
        pass                            # another run was quicker
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path, error):
    return UserError('--output_dir {}: cannot be written ({})'.format(os.path.dirname(path), error.strerror))


def _refusal(path, owner):
    return ('--output_dir {}: a run that began {} is at work there (process {} on {}); give another folder, or end '
            'that run first'.format(os.path.dirname(path), owner.get('begun'), owner.get('pid'), owner.get('host')))


def _read(path):
    """The lock's owner; None where there is no lock, {} where it is unreadable."""
    try:
        with open(path, encoding='utf-8') as file:
            owner = json.load(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _identity(pid=None):
    pid = pid or os.getpid()
    return {'host': socket.gethostname(), 'pid': pid, 'boot': _boot(), 'start': _start_of(pid)}


def _is_alive(owner, path):
    if owner.get('host') == socket.gethostname() and owner.get('boot') == _boot() and owner.get('pid'):
        # A pid is given anew one day: the same process has the same start time.
        return _exists(owner['pid']) and _start_of(owner['pid']) == owner.get('start')
    return _changes(path)


def _changes(path):
    """Whether the holder gives a sign of life while we look; clocks of two hosts are not compared."""
    logger.info('%s: held by a run on another host; waiting up to %.0f s for a sign of life', path, LOST)
    before, end = _changed(path), time.monotonic() + LOST
    while time.monotonic() < end:
        time.sleep(.5)
        if _changed(path) != before:
            return _changed(path) is not None
    return False


def _changed(path):
    try:
        return os.stat(path).st_mtime_ns
    except FileNotFoundError:
        return None


def _exists(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _start_of(pid):
    """When a process began, in ticks since the host's start; 'gone' for the dead, None where nobody tells."""
    try:
        with open('/proc/{}/stat'.format(pid), 'rb') as file:
            fields = file.read().rsplit(b')', 1)[1].split()
    except OSError:
        return None
    return 'gone' if fields[0] in (b'Z', b'X') else int(fields[19])


def _boot():
    try:
        with open('/proc/sys/kernel/random/boot_id') as file:
            return file.read().strip()
    except OSError:
        return None
