"""Mistakes that the user can mend: one clear line and a non-zero status, never a traceback."""
import multiprocessing
import os
import signal
import sys
import time
from contextlib import contextmanager

from util.text import first_line, one_line

USER_ERROR_STATUS = 2       # the user can mend it; running again as it is ends the same way
FAILURE_STATUS = 70           # a process died or hangs: running again may well succeed
SAVE_FAILED_STATUS = 74         # trained to the end, but the last checkpoint could not be written
PREEMPTED_STATUS = 75         # stopped as a signal asked, and saved: --resume auto goes on
LAUNCHER_FIRST = 3.         # seconds that the launcher gets to notice which process ended first


class UserError(Exception):
    """A wrong flag, path or file. The message names it and says what to do."""
    status = USER_ERROR_STATUS

    def __init__(self, message):
        # A DataLoader worker re-raises with its whole traceback as the message: keep what was said last.
        super().__init__(str(message).rsplit('UserError: ', 1)[-1].strip())


class SystemFailure(Exception):
    """Something around the program broke: another process, a loader process. The message says what."""
    status = FAILURE_STATUS


class Preempted(Exception):
    """A signal asked to stop, and all is saved. The message says where; '' where another process says it."""


class SaveFailed(Exception):
    """The last checkpoint of a run could not be written. The message says so; '' where another process does."""
    status = SAVE_FAILED_STATUS


@contextmanager
def reworded(flag, words):
    """Let the UserErrors of the block speak of `words` where they speak of `flag`, which the command has not."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(flag, words, 1)) from error


def run(main, *args):
    """Call `main`; end the process with one line and its status on whatever a user can expect to happen."""
    if hasattr(sys.stdout, 'reconfigure'):      # a file's name may hold what the terminal's encoding has not
        sys.stdout.reconfigure(errors='backslashreplace')
    try:
        main(*args)
    except (UserError, SystemFailure, SaveFailed) as error:
        if isinstance(error, UserError):
            report_once_per_node()
        _end('error: {}'.format(error) if str(error) else '', error.status)
    except Preempted as stopped:
        _end(str(stopped), PREEMPTED_STATUS)
    except KeyboardInterrupt:
        _end('interrupted', 128 + signal.SIGINT)
    except RuntimeError as error:
        backend = _process_group_backend()
        if not backend or backend not in str(error).lower():    # a type of their own is that of the newest PyTorch only
            raise
        report_once_per_node(among_all=True)
        _end('error: process {}: a collective operation failed, most often because another process ended ({})'.format(
            os.environ.get('RANK', '?'), first_line(error)), FAILURE_STATUS)


def report_once_per_node(among_all=False):
    """Pause, on all ranks of a node but the first, before a mistake is told; `among_all`: on the first too.

    Every rank usually makes the same one. When the first has ended, the launcher's SIGTERM ends the others without a
    word; a rank whose mistake is its own outlives the pause and speaks too.
    """
    if among_all or int(os.environ.get('LOCAL_RANK', 0)):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        time.sleep(LAUNCHER_FIRST)


def _process_group_backend():
    """Name of the collective library in use, which its exceptions have in their texts; None without process group."""
    distributed = sys.modules.get('torch.distributed')
    if distributed and distributed.is_available() and distributed.is_initialized():
        return distributed.get_backend().lower()
    return None


def _end(line, status):
    if line:
        print(one_line(line), file=sys.stderr, flush=True)
    if multiprocessing.active_children() or _process_group_backend():
        # The interpreter's own exit would wait for loader processes, and a process group that was not left can abort
        # it and replace the status.
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)
