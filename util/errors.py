"""Expected ends of a process (user errors, failures of the system, preemption): one line and an exit status."""
import errno
import gc
import os
import re
import signal
import sys
import time
from contextlib import contextmanager
from typing import Callable, Iterator, Optional

from util.text import first_line, one_line

USER_ERROR_STATUS = 2           # the same command fails the same way
FAILURE_STATUS = 70             # a process died or hangs, or memory or files ran out: a restart may succeed
SAVE_FAILED_STATUS = 74         # trained to the end, but the last checkpoint could not be written
PREEMPTED_STATUS = 75           # stopped by a signal; once training has begun, a checkpoint is saved
DELAY = 3.                      # seconds for the launcher to notice which process ended first

# Launchers mark the signals that they forward, as real-time signal FORWARDED + n for signal n: a signal to all
# processes of a job (Ctrl-C, a batch system) and its forwarded copy are one request, two of either kind are two.
FORWARDED = getattr(signal, 'SIGRTMIN', signal.NSIG)
LAUNCHER_EXITED = FORWARDED + signal.SIGKILL
STOP_SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
if hasattr(signal, 'SIGRTMIN'):
    STOP_SIGNALS += [*(FORWARDED + number for number in STOP_SIGNALS), LAUNCHER_EXITED]

# errno of a wrong path or file; None: no system call raised the OSError. All others are failures of the system.
USER_ERRNOS = {None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.EEXIST,
               errno.ENAMETOOLONG, errno.ENXIO, errno.ENODEV, errno.EINVAL, errno.EROFS, errno.ENOTEMPTY, errno.EXDEV,
               errno.ESPIPE, errno.ENOTSUP, errno.EILSEQ}
# Messages that the system has run out of something, in exceptions of any type, and what to do.
SHORTAGES = (
    (r'too many open files|items of ancdata', 'raise the limit (ulimit -n) or lower --num_workers'),
    (r'shared memory|/torch_[0-9]|unable to (mmap|open|resize|write to) .*file',
     'enlarge /dev/shm (docker run --shm-size=16g) or lower --num_workers'),
    (r"out of memory|can.?t allocate|cannot allocate memory|^memoryerror|failed to map segment",
     'lower --batch_size or --num_workers, or raise the limit of memory'),
    (r"can't start new thread|resource temporarily unavailable", 'raise the limit of processes (ulimit -u)'),
    (r'no space left|quota exceeded', 'free disk space, or enlarge /dev/shm if that is meant'))
DEVICE_ERROR = re.compile(r'\w+ error\b|.*error code', re.IGNORECASE)      # RuntimeErrors of CUDA and CANN


class ReportedError(Exception):
    """Base of errors that `run` reports in one line."""
    status = FAILURE_STATUS

    def __init__(self, message: object):
        # A DataLoader worker re-raises with its whole traceback as the message: keep the original one.
        super().__init__(str(message).rsplit(type(self).__name__ + ': ', 1)[-1].strip())


class UserError(ReportedError):
    """A wrong flag, path or file. The message names it and how to fix it."""

    @property
    def status(self) -> int:
        """That of a failure if raised from one, such as an OSError for too many open files."""
        return FAILURE_STATUS if is_system_failure(self.__cause__) else USER_ERROR_STATUS


class SystemFailure(ReportedError):
    """A failure outside this process's code: another rank, a loader process, memory, a disk. The message names it."""


class SaveFailed(ReportedError):
    """The last checkpoint of a run could not be written. The message says why; '' on the ranks that do not report."""
    status = SAVE_FAILED_STATUS


class Preempted(Exception):
    """Training stopped on a signal, checkpoint saved. The message names it; '' on the ranks that do not report."""


def is_system_failure(error: Optional[BaseException]) -> bool:
    """Whether memory, disk, limits or a device are at fault, not a flag or file of the user: status 70 instead of 2."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno not in USER_ERRNOS
    return isinstance(error, (MemoryError, SystemFailure)) or bool(
        isinstance(error, (OSError, RuntimeError)) and _shortage(error)
        or isinstance(error, RuntimeError) and DEVICE_ERROR.match(str(error)))


def raise_if_exhausted(error: BaseException) -> None:
    """Raise SystemFailure if a lack of open files, memory or the like is at fault, not the file that was being read.

    Not for a MemoryError: the header of a damaged file may claim more than fits.
    """
    line = '' if isinstance(error, MemoryError) else _shortage(error)
    if line or isinstance(error, SystemFailure):
        raise SystemFailure(line or error) from error


def _shortage(error):
    """'message; what to do' if the system has run out of something, else ''."""
    system_call = getattr(error, 'strerror', None)
    text = system_call or str(error) or type(error).__name__
    for line in reversed(text.strip().split('\n')):     # the message of a loader worker's error is its traceback
        for words, advice in SHORTAGES:
            if re.search(words, line, re.IGNORECASE):
                return '{}; {}'.format(first_line(error) if system_call else line, advice)
    return ''


@contextmanager
def reworded(flag: str, words: str) -> Iterator[None]:
    """Reword UserErrors raised in the block: `words` instead of `flag`, which the command does not have."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(flag, words, 1)) from error.__cause__


_earlier_handlers = {}


def begin(module: str) -> None:
    """Call in a script's first line, with its __name__, before PyTorch is imported, which takes seconds.

    A stop signal ends the process with one line and status 75, until `SignalHandler` takes over for the session of a
    run. Garbage is not collected before `run`: importing makes many objects and hardly any garbage.
    """
    if module == '__main__':
        gc.disable()
        for number in STOP_SIGNALS:
            _earlier_handlers[number] = signal.signal(number, lambda number, frame: exit_before_training(number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)        # blocked by util.tools.launch


def handle_signals_as_before() -> None:
    """Undo what `begin` did to signals: an interrupted tool removes its temporary files."""
    for number, handler in _earlier_handlers.items():
        signal.signal(number, handler)


def exit_before_training(number: int) -> None:
    """End the process at once, on a stop signal that comes before there is anything to save."""
    exit_now('stopped by {} before training; nothing to save'.format(signal_name(number)), PREEMPTED_STATUS)


def exit_now(line: str, status: int) -> None:
    """End the process without cleaning up; the first process of a node prints `line`."""
    if os.environ.get('LOCAL_RANK', '0') == '0':
        os.write(2, (line + '\n').encode())     # a signal handler may have interrupted a print
    os._exit(status)


def signal_name(number: int) -> str:
    """Name of a stop signal, such as SIGTERM, also of a forwarded one."""
    return 'the exit of its launcher' if number == LAUNCHER_EXITED else signal.Signals(number % FORWARDED).name


def run(main: Callable, *args) -> None:
    """Call `main` in a process of its own; on an expected failure, end it with one line and the exit status."""
    if hasattr(sys.stdout, 'reconfigure'):      # file names may not be encodable for the terminal
        sys.stdout.reconfigure(errors='backslashreplace')
    gc.freeze()         # later collections skip what the imports have made
    gc.enable()
    status = status_of(main, *args)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)      # from here on they would only replace the status
    multiprocessing = sys.modules.get('multiprocessing')
    if status and (multiprocessing and multiprocessing.active_children() or _process_group_backend()):
        # A normal exit would wait for loader processes; an open process group can abort it and replace the status.
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def status_of(main: Callable, *args) -> int:
    """Call `main`; an expected failure prints one line to standard error. Returns the exit status, 0 for success."""
    try:
        main(*args)
        return 0
    except ReportedError as error:
        if isinstance(error, UserError):
            report_once_per_node()
        return _report('error: {}'.format(error) if str(error) else '', error.status)
    except Preempted as stopped:
        return _report(str(stopped), PREEMPTED_STATUS)
    except KeyboardInterrupt:
        return _report('interrupted', 128 + signal.SIGINT)
    except (RuntimeError, OSError, MemoryError) as error:
        backend = _process_group_backend()
        if backend and backend in str(error).lower():   # only the newest PyTorch has a type for these
            report_once_per_node(delay_first=True)
            return _report('error: process {}: a collective operation failed, most often because another process ended '
                           '({})'.format(os.environ.get('RANK', '?'), first_line(error)), FAILURE_STATUS)
        line = _shortage(error) or isinstance(error, OSError) and is_system_failure(error) and first_line(error)
        if not line:
            raise
        sys.last_value = error      # keeps its frames: the destructor of a DataLoader that could not start would raise
        return _report('error: ' + line, FAILURE_STATUS)


def report_once_per_node(delay_first: bool = False) -> None:
    """Delay an error report on all local ranks but 0 (it too if `delay_first`), since they usually share the error.

    When rank 0 has ended, the launcher's SIGTERM ends the others silently; a rank with its own error outlives this.
    """
    if delay_first or os.environ.get('LOCAL_RANK', '0') != '0':
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
