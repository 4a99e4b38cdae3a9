"""Loader workers: death, signals, user errors, shutdown."""
import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback

import pytest
import torch
from conftest import environment
from torch.utils.data import Dataset

from util.data import loader
from util.data.loader import evaluation_loader
from util.devices.accelerator import Cpu
from util.distributed.world import World
from util.errors import SystemFailure, UserError


class Samples(Dataset):
    """40 samples; loading the 20th calls `act`."""

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
    """Message of the exception of `kind` that `work` raises."""
    try:
        work()
    except kind as error:
        for each in filter(None, (error, error.__cause__)):     # PyTorch's frames keep the iterator alive
            traceback.clear_frames(each.__traceback__)
        return str(error)
    return 'nothing was raised'


def run_python(code):
    """(exit status, output) of a Python process and its children, until the last of them exits."""
    run = subprocess.run([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60,
                         env=environment(PYTHONPATH=os.pathsep.join(sys.path)))
    return run.returncode, run.stdout.decode()


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
    time.sleep(.0001)           # a SIGCHLD handler would raise in one of these
print(workers.raised_by(lambda: list(batches), SystemFailure).replace(str(victim), 'the victim'), flush=True)
os._exit(0)                     # PyTorch 1.5 waits forever for the workers that are left
'''


@pytest.mark.slow
@pytest.mark.compat
def test_death_of_a_worker_is_raised_only_where_its_batch_is_requested():
    assert '(pid the victim) was killed by SIGKILL' in run_python(ASKED)[1]


@pytest.mark.parametrize('message, remedy', [
    ('unable to allocate shared memory(shm) for file </torch_1_2>: Resource temporarily unavailable', '/dev/shm'),
    ('received 0 items of ancdata', 'ulimit -n')])
@pytest.mark.parametrize('num_workers', [0, 2])
def test_lack_of_shared_memory_or_open_files_is_one_line(message, remedy, num_workers):
    def fail():
        raise RuntimeError(message)
    found = raised_by(lambda: list(loader_of(Samples(fail), num_workers)), SystemFailure)
    assert remedy in found and '--num_workers' in found and '\n' not in found


def test_batches_leave_a_worker_in_shared_memory(monkeypatch):
    """Otherwise the queue's own thread moves them there, and a lack of it would hang."""
    monkeypatch.setattr(loader, 'get_worker_info', lambda: 'in a worker')
    (images, labels), _ = loader.collate([((torch.zeros(3), 1), []), ((torch.zeros(3), 2), [])])
    assert images.is_shared() and labels.is_shared()


def test_workers_that_cannot_start_are_one_line(monkeypatch):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(multiprocessing.context.BaseContext, 'SimpleQueue', full)
    assert '/dev/shm' in raised_by(lambda: list(loader_of(Samples())), SystemFailure)


def user_error():
    raise UserError('--data_path: wrong')


def test_user_error_in_a_worker_stays_one_line():
    assert raised_by(lambda: list(loader_of(Samples(user_error))), UserError) == '--data_path: wrong'


def signal_the_job():
    for name in ('INT', 'USR1', 'TERM'):
        subprocess.call(['kill', '-' + name, str(os.getpid())])
    time.sleep(2)


@pytest.mark.compat
def test_workers_ignore_signals_of_the_batch_system():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)      # ignored below a shell's `&`
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 2)          # PyTorch then starts threads in each worker before anything else
    try:
        assert len(list(loader_of(Samples(signal_the_job), 1))) == 10
    finally:
        torch.set_num_threads(threads)
        signal.signal(signal.SIGINT, before)


def test_workers_are_forked_even_if_spawn_is_the_default():
    assert loader_of(Samples()).loader.multiprocessing_context.get_start_method() == 'fork'


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
        os.read(ends[0], 1)                         # until the training process has exited
        raise ConnectionResetError('mid-batch')
    except ConnectionResetError:
        sys.excepthook(*sys.exc_info())             # as the queue's thread does
    time.sleep(1e6)                                 # a blocked read
"""


@pytest.mark.slow
def test_blocked_worker_exits_silently_with_its_killed_training_process():
    assert run_python(ORPHAN) == (-signal.SIGKILL, '')
