"""DataLoader worker processes: their signals, their end, and the report of one that dies."""
import functools
import multiprocessing
import os
import re
import signal
import sys
import threading
import time

from util.errors import Fault

GRACE = 2.          # seconds
_TELLS_SENDER = hasattr(signal, 'sigtimedwait')      # of a signal; not on macOS
_CAUGHT = re.compile(r'Caught \w+ in DataLoader worker process')     # raised in a worker that lives
_ADVICE = {signal.SIGKILL: 'most often memory ran out: lower --num_workers',
           signal.SIGBUS: 'most often shared memory ran out: enlarge /dev/shm or lower --num_workers'}


def options(num_workers):
    """DataLoader keywords for so many loader processes.

    On Linux they are forked: started anew, as Python 3.14 does unless told, each would take seconds for its imports,
    and hold lists of its own.
    """
    found = {'num_workers': num_workers, 'worker_init_fn': functools.partial(set_up, os.getpid())}
    if num_workers and sys.platform.startswith('linux'):
        found['multiprocessing_context'] = 'fork'
    return found


def set_up(parent, worker):
    """A DataLoader's worker_init_fn: this process leaves signals to its training process `parent`, and ends with it.

    A batch system signals all processes of a job, and those that train still need batches for the step at hand; the
    training process itself means its SIGTERM.
    """
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if _TELLS_SENDER:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    sys.excepthook = lambda *error: None    # of the thread whose connection breaks off as the training process dies
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent):
    """End with the training process, or by its SIGTERM.

    DataLoader's own way to end takes seconds, in which the memory and the terminal are not free, and for ever where a
    file blocks or a process that was killed held a lock.
    """
    while os.getppid() == parent:
        told = signal.sigtimedwait([signal.SIGTERM], 1.) if _TELLS_SENDER else time.sleep(1.)
        if told and told.si_pid == parent:
            break
    os._exit(1)


def batches(loader):
    """A generator of a DataLoader's batches; its workers run when this returns.

    Raises:
        Fault: a worker has died; by the generator, when its batch is asked for.
    """
    return _following(_iterator(loader), multiprocessing.active_children())


def _iterator(loader):
    """iter(loader) without the handler of SIGCHLD by which DataLoader tells of a dead worker at any moment."""
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        # Not by a name of its own: Python 3.7's getsignal leaves this frame in a cycle, and an iterator that a younger
        # loader process collects as garbage waits there for processes that are not its own.
        return iter(loader)
    finally:
        if handler not in (None, signal.getsignal(signal.SIGCHLD)):     # None: not set from Python
            signal.signal(signal.SIGCHLD, handler)


def _following(iterator, processes):
    try:
        yield from iterator
    except (RuntimeError, OSError, EOFError) as error:
        deadline = time.monotonic() + GRACE     # a batch can break off before the system knows of its worker's end
        while processes and not _CAUGHT.match(str(error)):
            dead = [process for process in processes if process.exitcode is not None]
            if dead:
                raise Fault(_how(dead[0])) from error
            if time.monotonic() > deadline:
                break
            time.sleep(.02)
        raise


def _how(worker):
    number = -worker.exitcode
    end = 'was killed by ' + signal.Signals(number).name if number > 0 else 'ended with status {}'.format(-number)
    return 'a loader process (pid {}) {}; {}'.format(worker.pid, end,
                                                     _ADVICE.get(number, '--num_workers 0 may show why'))
