"""Samplers, seeds, unreadable images and loader processes of training and evaluation."""
import errno
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import environment
from torch.utils.data import Dataset
from torch.utils.data._utils.pin_memory import pin_memory

from util.data import loader
from util.data.image_files import UnreadableImage
from util.data.loader import SeededDataset, TrainingSampler, collate, evaluation_loader, training_loader
from util.devices.accelerator import Cpu
from util.distributed.world import World
from util.errors import SystemFailure, UserError

pytestmark = pytest.mark.compat


class Files(Dataset):
    """(image filled with the index, label) pairs; some are unreadable."""

    def __init__(self, length=12, bad=()):
        self.length, self.bad = length, set(bad)

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index in self.bad:
            raise UnreadableImage('/data/{}'.format(index), 'damaged')
        return torch.full((1, 2, 2), float(index)), 100 + index


class Noise(Files):
    """Samples of their index and a number from each of the three random generators."""

    def __getitem__(self, index):
        return torch.tensor([index, random.random(), np.random.rand(), torch.rand(()).item()])


def batches(num_workers, epoch=0, seed=0, size=1, rank=0, batch_size=4):
    loader = training_loader(Noise(), batch_size, World(rank, size), seed, num_workers, True, Cpu())
    loader.sampler.epoch = epoch
    return torch.stack(list(loader))


def test_batches_depend_on_seed_and_epoch_but_not_on_loader_workers():
    first, second = batches(0, epoch=0), batches(0, epoch=1)
    torch.manual_seed(1)
    assert torch.equal(first, batches(2, epoch=0)) and torch.equal(second, batches(0, epoch=1))
    assert not torch.equal(first[..., 0], second[..., 0])
    assert set(first[..., 1].flatten().tolist()).isdisjoint(second[..., 1].flatten().tolist())
    assert not torch.equal(first[..., 0], batches(0, seed=1)[..., 0])


def test_two_processes_see_the_images_of_one_with_twice_the_batch_size():
    one = batches(0, batch_size=4)
    two = [batches(0, size=2, rank=rank, batch_size=2) for rank in (0, 1)]
    for step in range(3):
        together = torch.cat([shard[step] for shard in two])
        assert sorted(together.tolist()) == sorted(one[step].tolist())


def test_training_shards_are_equal_and_disjoint_if_the_world_size_does_not_divide():
    shards = [[index for index, _ in TrainingSampler(11, 0, rank, 3)] for rank in range(3)]
    assert [len(shard) for shard in shards] == [3, 3, 3]
    assert len(set(sum(shards, []))) == 9


@pytest.mark.parametrize('distributed', [True, False])
def test_evaluation_shards_contain_every_image_once(distributed):
    found = [evaluated(Files(3), distributed=distributed, rank=rank, size=2)[0] for rank in range(2)]
    assert found == [[([0, 2], [100, 102])], [([1], [101])]] if distributed else [[([0, 1, 2], [100, 101, 102])], []]


def test_batch_size_beyond_the_dataset_is_a_user_error():
    with pytest.raises(UserError, match='--batch_size 16'):
        training_loader(Noise(), 16, World(), 0, 0, True, Cpu())


def passed(loader):
    """([(images, labels)] as lists of numbers, failures) of one pass."""
    found = []
    loader.unreadable_images = SimpleNamespace(add=found.extend)
    return [(images[:, 0, 0, 0].tolist(), labels.tolist()) for images, labels in loader], found


def trained(dataset, num_workers=0, batch_size=4, seed=0, **world):
    return passed(training_loader(dataset, batch_size, World(**world), seed, num_workers, True, Cpu()))


def evaluated(dataset, num_workers=0, batch_size=4, distributed=False, **world):
    loader = evaluation_loader(dataset, batch_size, World(**world), distributed, num_workers, True, Cpu())
    return (*passed(loader), len(loader.failures))


def test_unreadable_image_is_substituted_with_its_label():
    whole, _ = trained(Files())
    batches, found = trained(Files(bad=[3, 5]), 2)
    assert set(found) == {('/data/3', 'damaged'), ('/data/5', 'damaged')}
    for (images, labels), (expected, _) in zip(batches, whole):
        assert labels == [100 + image for image in images]
        assert [image for image, was in zip(images, expected) if was not in (3, 5)] \
            == [was for was in expected if was not in (3, 5)]
        assert not {3, 5} & set(images)


def test_substitutes_depend_on_index_and_seed_alone():
    class Noisy(Files):
        def __getitem__(self, index):
            return super().__getitem__(index)[0], torch.rand(()).item()
    bad = range(0, 40, 2)
    assert trained(Files(40, bad)) == trained(Files(40, bad))
    assert len({SeededDataset(Files(1000, bad=range(500)))[index, 7][0][1] for index in range(100)}) > 50
    assert SeededDataset(Noisy(bad=[3]))[3, 5][0][1] == SeededDataset(Noisy())[3, 5][0][1]


@pytest.mark.parametrize('length, tries', [(500, 100), (7, 7)])
def test_too_many_unreadable_substitutes_are_a_user_error(length, tries):
    with pytest.raises(UserError, match=r'^--data_path: {} images .*/data/\d+ \(damaged\)'.format(tries)):
        SeededDataset(Files(length, bad=range(length)))[0, 0]


def test_evaluation_skips_unreadable_images():
    batches, found, unreadable = evaluated(Files(10, bad=[1, 4, 5, 6, 7]), 2)
    assert batches == [([0, 2, 3], [100, 102, 103]), ([8, 9], [108, 109])]      # the batch of 4 to 7 is empty
    assert unreadable == 5 and [path for path, _ in found] == ['/data/{}'.format(i) for i in (1, 4, 5, 6, 7)]


def test_failures_survive_memory_pinning(monkeypatch):
    monkeypatch.setattr(torch.Tensor, 'pin_memory', lambda tensor, *device: tensor)     # which needs an accelerator
    found = [('/data/a\udc80', 'damaged'), ('/data/b', 'an empty file')]
    for sample in ((torch.zeros(2), 1), None):
        batch, pinned = pin_memory(collate([(sample, found)]))
        assert (batch is None) == (sample is None) and [tuple(pair) for pair in pinned] == found


# Loader processes: death, signals, user errors, shutdown

class Acting(Files):
    """40 files; loading the 20th calls `act`."""

    def __init__(self, act=None):
        super().__init__(40)
        self.act = act

    def __getitem__(self, index):
        if index == 20 and self.act:
            self.act()
        return super().__getitem__(index)


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
import multiprocessing, test_loader as tests
from util.errors import SystemFailure
batches = iter(tests.loader_of(tests.Acting()))
next(batches)
victim = multiprocessing.active_children()[0].pid
os.kill(victim, signal.SIGKILL)
os.waitid(os.P_PID, victim, os.WEXITED | os.WNOWAIT)
for _ in range(1000):
    time.sleep(.0001)           # a SIGCHLD handler would raise in one of these
print(tests.raised_by(lambda: list(batches), SystemFailure).replace(str(victim), 'the victim'), flush=True)
os._exit(0)                     # PyTorch 1.5 waits forever for the workers that are left
'''


@pytest.mark.slow
def test_death_of_a_worker_is_raised_only_where_its_batch_is_requested():
    assert '(pid the victim) was killed by SIGKILL' in run_python(ASKED)[1]


@pytest.mark.parametrize('message, remedy', [
    ('unable to allocate shared memory(shm) for file </torch_1_2>: Resource temporarily unavailable', '/dev/shm'),
    ('received 0 items of ancdata', 'ulimit -n')])
@pytest.mark.parametrize('num_workers', [0, 2])
def test_lack_of_shared_memory_or_open_files_is_one_line(message, remedy, num_workers):
    def fail():
        raise RuntimeError(message)
    found = raised_by(lambda: list(loader_of(Acting(fail), num_workers)), SystemFailure)
    assert remedy in found and '--num_workers' in found and '\n' not in found


def test_batches_leave_a_worker_in_shared_memory(monkeypatch):
    """Otherwise the queue's own thread moves them there, and a lack of it would hang."""
    monkeypatch.setattr(loader, 'get_worker_info', lambda: 'in a worker')
    (images, labels), _ = collate([((torch.zeros(3), 1), []), ((torch.zeros(3), 2), [])])
    assert images.is_shared() and labels.is_shared()


def test_workers_that_cannot_start_are_one_line(monkeypatch):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(multiprocessing.context.BaseContext, 'SimpleQueue', full)
    assert '/dev/shm' in raised_by(lambda: list(loader_of(Acting())), SystemFailure)


def user_error():
    raise UserError('--data_path: wrong')


def test_user_error_in_a_worker_stays_one_line():
    assert raised_by(lambda: list(loader_of(Acting(user_error))), UserError) == '--data_path: wrong'


def signal_the_job():
    for name in ('INT', 'USR1', 'TERM'):
        subprocess.call(['kill', '-' + name, str(os.getpid())])
    time.sleep(2)


def test_workers_ignore_signals_of_the_batch_system():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)      # ignored below a shell's `&`
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 2)          # PyTorch then starts threads in each worker before anything else
    try:
        assert len(list(loader_of(Acting(signal_the_job), 1))) == 10
    finally:
        torch.set_num_threads(threads)
        signal.signal(signal.SIGINT, before)


def test_workers_are_forked_even_if_spawn_is_the_default():
    assert loader_of(Acting()).loader.multiprocessing_context.get_start_method() == 'fork'


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
