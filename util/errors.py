"""Expected failures (user errors, preemption, dead processes): one line and an exit status, never a traceback."""
import multiprocessing
import os
import signal
import sys
import time
from contextlib import contextmanager
from typing import Callable, Iterator, Optional

from util.text import first_line, one_line

USER_ERROR_STATUS = 2           # the same command fails the same way
FAILURE_STATUS = 70             # a process died or hangs: a restart may succeed
SAVE_FAILED_STATUS = 74         # trained to the end, but the last checkpoint could not be written
PREEMPTED_STATUS = 75           # stopped by a signal, checkpoint saved: resume with --resume auto
DELAY = 3.                      # seconds for the launcher to notice which process ended first


class UserError(Exception):
    """A wrong flag, path or file. The message names it and how to fix it."""
    status = USER_ERROR_STATUS

    def __init__(self, message: object):
        # A DataLoader worker re-raises with its whole traceback as the message: keep the original one.
        super().__init__(str(message).rsplit('UserError: ', 1)[-1].strip())


class SystemFailure(Exception):
    """A failure outside this process's code: another rank, a loader process. The message names it."""
    status = FAILURE_STATUS


class Preempted(Exception):
    """Training stopped on a signal, checkpoint saved. The message names it; '' on the ranks that do not report."""


class SaveFailed(Exception):
    """The last checkpoint of a run could not be written. The message says why; '' on the ranks that do not report."""
    status = SAVE_FAILED_STATUS


@contextmanager
def reworded(flag: str, words: str) -> Iterator[None]:
    """Reword UserErrors raised in the block: `words` instead of `flag`, which the command does not have."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(flag, words, 1)) from error


def run(main: Callable, *args) -> None:
    """Call `main` in a process of its own; on an expected failure, end it with one line and the exit status."""
    if hasattr(sys.stdout, 'reconfigure'):      # file names may not be encodable for the terminal
        sys.stdout.reconfigure(errors='backslashreplace')
    status = status_of(main, *args)
    # From here on a signal would only replace the status.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1))
    if status and (multiprocessing.active_children() or _process_group_backend()):
        # A normal exit would wait for loader processes; an open process group can abort it and replace the status.
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def status_of(main: Callable, *args) -> int:
    """Call `main`; an expected failure prints one line to standard error. Returns the exit status, 0 for success."""
    try:
        main(*args)
        return 0
    except (UserError, SystemFailure, SaveFailed) as error:
        if isinstance(error, UserError):
            report_once_per_node()
        return _report('error: {}'.format(error) if str(error) else '', error.status)
    except Preempted as stopped:
        return _report(str(stopped), PREEMPTED_STATUS)
    except KeyboardInterrupt:
        return _report('interrupted', 128 + signal.SIGINT)
    except RuntimeError as error:
        backend = _process_group_backend()
        if not backend or backend not in str(error).lower():    # only the newest PyTorch has a type for these
            raise
        report_once_per_node(delay_first=True)
        return _report(
            'error: process {}: a collective operation failed, most often because another process ended ({})'.format(
                os.environ.get('RANK', '?'), first_line(error)), FAILURE_STATUS)


def report_once_per_node(delay_first: bool = False) -> None:
    """Delay an error report on all local ranks but 0 (it too if `delay_first`), since they usually share the error.

    When rank 0 has ended, the launcher's SIGTERM ends the others silently; a rank with its own error outlives this.
    """
    if delay_first or int(os.environ.get('LOCAL_RANK', 0)):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        time.sleep(DELAY)


def _process_group_backend() -> Optional[str]:
    """Name of the collective library in use, part of its exceptions' messages; None without a process group."""
    distributed = sys.modules.get('torch.distributed')
    if distributed and distributed.is_available() and distributed.is_initialized():
        return distributed.get_backend().lower()
    return None


def _report(line, status):
    if line:
        print(one_line(line), file=sys.stderr, flush=True)
    return status
