"""Loader processes that die, are signalled, or meet a mistake of the user's."""
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
import weakref

import pytest
import torch
from conftest import environment, execute
from torch.utils.data import DataLoader, Dataset

from util.data.loader import evaluation_loader, iterate_loader
from util.devices.accelerator import Cpu
from util.distributed.world import World
from util.errors import UserError


class Samples(Dataset):
    """40 samples; in the loader process that looks up the 20th, `act` is called."""

    def __init__(self, act=None):
        self.act = act

    def __len__(self):
        return 40

    def __getitem__(self, index):
        if index == 20 and self.act:
            self.act()
        return torch.zeros(1), index


def loader_of(dataset, num_workers=2):
    return evaluation_loader(dataset, 4, World(), False, num_workers, True, Cpu())


def raised_by(work, kind):
    """What an exception says."""
    try:
        work()
    except kind as error:
        traceback.clear_frames(error.__traceback__)     # PyTorch's hold the iterator until garbage is collected
        return str(error)
    return 'nothing was raised'


def run_python(code):
    """(status, all that a Python and the processes that it has started print, to the end of the last one)."""
    run = subprocess.run([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60,
                         env=environment(PYTHONPATH=os.pathsep.join(sys.path)))
    return run.returncode, run.stdout.decode()


@pytest.mark.compat
def test_an_iterator_goes_with_its_last_reference():
    """Left to a collection of garbage, it may be collected in a younger loader process, where PyTorch 1.5 hangs."""
    gc.collect()
    gc.disable()
    try:
        iterator = iterate_loader(DataLoader([0] * 8, num_workers=1))
        next(iterator)
        gone = weakref.ref(iterator.gi_yieldfrom)
        assert len(list(iterator)) == 7
        del iterator
        assert gone() is None
    finally:
        gc.enable()


DYING = '''
import functools, os, sys, test_worker_processes as workers
from util import errors
errors.run(lambda: list(workers.loader_of(workers.Samples(functools.partial(os._exit, 3)))))
'''


@pytest.mark.slow
@pytest.mark.compat
def test_a_loader_process_that_dies_ends_the_run_with_one_line_that_says_how():
    run = execute([sys.executable, '-c', DYING], PYTHONPATH=os.pathsep.join(sys.path))
    assert run.status == 70 and 'Traceback' not in run.output, run.output
    last = run.output.strip().split('\n')[-1]
    assert 'error: ' in last and 'status 3' in last and '--num_workers' in last


ASKED = '''
import os, signal, time
import multiprocessing, test_worker_processes as workers
from util.errors import SystemFailure
batches = iter(workers.loader_of(workers.Samples()))
next(batches)
victim = multiprocessing.active_children()[0].pid
os.kill(victim, signal.SIGKILL)
os.waitid(os.P_PID, victim, os.WEXITED | os.WNOWAIT)
for _ in range(1000):
    time.sleep(.0001)           # any of these would end by a handler of SIGCHLD
print(workers.raised_by(lambda: list(batches), SystemFailure).replace(str(victim), 'the victim'), flush=True)
os._exit(0)                     # PyTorch 1.5 waits for ever for the loader processes that are left beside a dead one
'''


@pytest.mark.slow
@pytest.mark.compat
def test_the_death_of_a_loader_process_is_raised_where_its_batch_is_asked_for_and_nowhere_else():
    assert '(pid the victim) was killed by SIGKILL' in run_python(ASKED)[1]


def mistake():
    raise UserError('--data_path: a mistake')


def test_a_mistake_that_a_loader_process_meets_stays_one_line():
    assert raised_by(lambda: list(loader_of(Samples(mistake))), UserError) == '--data_path: a mistake'


def signal_the_job():
    for name in ('INT', 'USR1', 'TERM'):
        subprocess.call(['kill', '-' + name, str(os.getpid())])
    time.sleep(2)


@pytest.mark.compat
def test_a_loader_process_leaves_the_signals_of_a_batch_system_to_its_training_process():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)      # ignored below a shell's `&`
    try:
        assert len(list(loader_of(Samples(signal_the_job), 1))) == 10
    finally:
        signal.signal(signal.SIGINT, before)


def test_loader_processes_are_forked_where_python_would_rather_start_them_anew():
    method = multiprocessing.get_start_method()
    multiprocessing.set_start_method('spawn', force=True)
    try:
        assert len(list(loader_of(Samples(lambda: None)))) == 10        # a lambda cannot be sent to another process
    finally:
        multiprocessing.set_start_method(method, force=True)


KEPT = """
import test_worker_processes
batches = iter(test_worker_processes.loader_of(test_worker_processes.Samples(), 2))
next(batches)
"""


@pytest.mark.compat
def test_a_program_that_keeps_its_loader_to_the_end_ends():
    assert run_python(KEPT) == (0, '')


ORPHAN = """
import os, signal, sys, time
from util.data import loader
ends, ready, parent = os.pipe(), os.pipe(), os.getpid()
if os.fork():
    os.read(ready[0], 1)
    os.kill(parent, signal.SIGKILL)
else:
    loader.init_worker(parent, 0)
    os.close(ends[1])
    os.write(ready[1], b'.')
    try:
        os.read(ends[0], 1)                         # until the training process is gone
        raise ConnectionResetError('mid-batch')
    except ConnectionResetError:
        sys.excepthook(*sys.exc_info())             # as the thread that hands batches over does
    time.sleep(1e6)                                 # as one that waits for a file
"""


@pytest.mark.slow
def test_a_loader_process_ends_silently_with_its_killed_training_process_even_if_it_is_stuck():
    assert run_python(ORPHAN) == (-signal.SIGKILL, '')
