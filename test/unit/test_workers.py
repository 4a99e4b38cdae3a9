"""Loader processes that die, are signalled, or meet a mistake of the user's."""
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref

import pytest
import torch
from conftest import environment, execute
from torch.utils.data import DataLoader, Dataset

from util import workers
from util.device import Cpu
from util.distributed import World
from util.errors import Fault, UserError
from util.loader import evaluation_loader

PROGRAM = '''
import signal, sys
import test_workers
from util import errors
errors.run(test_workers.iterate, int(sys.argv[1]))
'''


class Dying(Dataset):
    """40 samples, of which the 20th, where it is looked up in a loader process, ends it by a signal or a status."""

    def __init__(self, by_signal=None, status=None):
        self.by_signal, self.status = by_signal, status

    def __len__(self):
        return 40

    def __getitem__(self, index):
        if index == 20 and self.by_signal:
            os.kill(os.getpid(), self.by_signal)
        if index == 20 and self.status is not None:
            os._exit(self.status)
        return torch.zeros(1), index


class Asking(Dataset):
    """What becomes of the signals in a loader process, as numbers."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        names = signal.SIGINT, signal.SIGUSR1, signal.SIGTERM
        return torch.tensor([int(signal.getsignal(name) == signal.SIG_IGN) for name in names]
                            + [signal.set_wakeup_fd(-1)])


class Mistaken(Dying):
    def __getitem__(self, index):
        raise UserError('--data_path: a mistake')


def loader_of(dataset, num_workers=2):
    return evaluation_loader(dataset, 4, World(), False, num_workers, True, Cpu())


def iterate(number):
    """All batches of a loader one of whose processes dies by a signal, or ends with a status (negative)."""
    for _ in loader_of(Dying(by_signal=number) if number > 0 else Dying(status=-number)):
        pass


def raised_by(work, kind):
    """What an exception says."""
    try:
        work()
    except kind as error:
        traceback.clear_frames(error.__traceback__)     # PyTorch's hold the iterator until garbage is collected
        return str(error)
    return 'nothing was raised'


def apart(work):
    """What `work` gives, a text, in a process that then just ends, as the program does.

    PyTorch 1.5 waits for ever for the loader processes that are left beside a dead one.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            text = work()
        except BaseException as error:
            text = repr(error)
        os.write(writer, text.encode())
        os._exit(0)
    os.waitpid(child, 0)
    try:
        return os.read(reader, 1 << 16).decode()
    finally:
        os.close(reader)
        os.close(writer)


def whole(command):
    """(status, all that a command and the processes that it has started print, to the end of the last one)."""
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60,
                         env=environment(PYTHONPATH=os.pathsep.join(sys.path)))
    return run.returncode, run.stdout.decode()


@pytest.fixture(autouse=True)
def no_process_left():
    yield
    gc.collect()
    deadline = time.monotonic() + 20
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(.05)
    assert not multiprocessing.active_children()


@pytest.mark.compat
def test_an_iterator_goes_with_its_last_reference():
    """Left to a collection of garbage, it may be collected in a younger loader process, where PyTorch 1.5 hangs."""
    gc.collect()
    gc.disable()
    try:
        iterator = workers.start(DataLoader([0] * 8, num_workers=1))
        gone = weakref.ref(iterator)
        assert len(list(iterator)) == 8
        del iterator
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.slow
@pytest.mark.compat
@pytest.mark.parametrize('number, end', [(signal.SIGKILL, 'SIGKILL'), (signal.SIGBUS, '/dev/shm'), (-3, 'status 3')])
def test_a_loader_process_that_dies_ends_the_run_with_one_line_that_says_how(number, end):
    run = execute([sys.executable, '-c', PROGRAM, int(number)], PYTHONPATH=os.pathsep.join(sys.path))
    assert run.status == 70 and 'Traceback' not in run.output, run.output
    last = run.output.strip().split('\n')[-1]
    assert 'error: ' in last and end in last and '--num_workers' in last


@pytest.mark.slow
@pytest.mark.compat
def test_the_death_of_a_loader_process_is_raised_where_its_batch_is_asked_for_and_nowhere_else():
    def work():
        batches = iter(loader_of(Dying()))
        next(batches)
        victim = multiprocessing.active_children()[0].pid
        os.kill(victim, signal.SIGKILL)
        os.waitid(os.P_PID, victim, os.WEXITED | os.WNOWAIT)
        for _ in range(1000):
            time.sleep(.0001)           # any of these would end by a handler of SIGCHLD
        return raised_by(lambda: list(batches), Fault).replace(str(victim), 'the victim')
    assert '(pid the victim) was killed by SIGKILL' in apart(work)


@pytest.mark.compat
def test_loader_processes_leave_signals_to_the_training_process():
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM)}
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        for number in signals:
            signal.signal(number, lambda *args: None)
        signal.set_wakeup_fd(writer)
        assert [list(batch[0]) for batch in loader_of(Asking(), 1)] == [[1, 1, 0, -1]]
        assert signal.set_wakeup_fd(-1) == writer
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in signals.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


def test_a_mistake_that_a_loader_process_meets_stays_one_line():
    assert apart(lambda: raised_by(lambda: list(loader_of(Mistaken())), UserError)) == '--data_path: a mistake'


class Terminated(Dying):
    """Each look-up is met by a SIGTERM from outside, as a batch system sends it to all processes of a job."""

    def __getitem__(self, index):
        subprocess.call(['kill', '-TERM', str(os.getpid())])
        return torch.zeros(1), index


@pytest.mark.compat
def test_a_loader_process_serves_on_when_the_whole_job_is_signalled():
    assert len(list(loader_of(Terminated(), 1))) == 10


@pytest.mark.parametrize('sender, by', [('another process', signal.SIGALRM), ('its training process', signal.SIGTERM)])
def test_a_loader_process_ends_soon_after_a_signal_and_at_once_by_its_training_process(monkeypatch, sender, by):
    monkeypatch.setattr(workers, 'LAST_SERVICE', 1)

    def work():
        batches = iter(loader_of(Dying(), 1))
        next(batches)
        worker = multiprocessing.active_children()[0]
        if sender == 'another process':
            subprocess.call(['kill', '-TERM', str(worker.pid)])
        else:
            worker.terminate()
        worker.join(30)
        return str(worker.exitcode)
    assert apart(work) == str(-by)


class Unportable(Dying):
    def __init__(self):
        super().__init__()
        self.generator = (i for i in range(3))      # cannot be copied to a process that starts anew


def test_loader_processes_are_forked_where_python_would_rather_start_them_anew():
    code = """
import multiprocessing
multiprocessing.set_start_method('forkserver')
import test_workers
print(len(list(test_workers.loader_of(test_workers.Unportable()))))
"""
    assert whole([sys.executable, '-c', code]) == (0, '10\n')


KEPT = """
import test_workers
from util import workers
workers.LAST_SERVICE = 1000
batches = iter(test_workers.loader_of(test_workers.Dying(), 2))
next(batches)
"""


@pytest.mark.compat
def test_a_program_that_keeps_its_loader_to_the_end_ends():
    assert whole([sys.executable, '-c', KEPT]) == (0, '')


ORPHAN = """
import os, signal, sys
from util import workers
ends, ready = os.pipe(), os.pipe()
if os.fork():
    os.read(ready[0], 1)
    os.kill(os.getpid(), signal.SIGKILL)
else:
    workers.set_up(0)
    os.close(ends[1])
    os.write(ready[1], b'.')
    try:
        os.read(ends[0], 1)                         # until the training process is gone
        raise ConnectionResetError('mid-batch')
    except ConnectionResetError:
        sys.excepthook(*sys.exc_info())             # as the thread that hands batches over does
"""


def test_a_loader_process_says_nothing_of_a_connection_that_its_killed_training_process_left():
    assert whole([sys.executable, '-c', ORPHAN]) == (-signal.SIGKILL, '')


class Stuck(Dying):
    def __getitem__(self, index):
        time.sleep(1e6)


def be_killed():
    """Ask for batches that never come, and die."""
    threading.Timer(1., os.kill, (os.getpid(), signal.SIGKILL)).start()
    next(iter(loader_of(Stuck())))


@pytest.mark.slow
def test_a_loader_process_that_is_stuck_ends_with_its_killed_training_process():
    assert whole([sys.executable, '-c', 'import test_workers; test_workers.be_killed()']) == (-signal.SIGKILL, '')


LATE = """
import multiprocessing, os, signal, time
from util import workers

def late():
    while os.getppid() == parent:
        time.sleep(.02)
    workers.set_up(0)
    time.sleep(1e6)

parent = os.getpid()
multiprocessing.get_context('fork').Process(target=late).start()
os.kill(parent, signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(multiprocessing, 'parent_process'), reason='Python 3.7 does not tell the parent')
def test_a_loader_process_that_starts_after_the_end_of_its_training_process_ends_too():
    assert whole([sys.executable, '-c', LATE]) == (-signal.SIGKILL, '')
