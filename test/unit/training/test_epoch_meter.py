"""Throughput, with a fake clock; means on the device; accuracy."""
import math
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from engine_finetune import count_correct
from util.devices.accelerator import Cpu
from util.distributed.world import World
from util.training.epoch_meter import DeviceMean, EpochMeter, Throughput
from util.training.non_finite_steps import NonFiniteSteps
from util.training.session import Session


class Clock:
    """A fake clock."""

    def __init__(self):
        self.time, self.synchronized = 0., 0

    def __call__(self):
        return self.time

    def synchronize(self):
        self.synchronized += 1


def timed_pass(sizes, step, wait=0., warmup=10, slow_first=0.):
    """A pass over batches of `sizes` images that wait `wait` seconds for data and take `step` seconds each."""
    clock = Clock()

    def loader():
        for size in sizes:
            clock.time += wait
            yield [0] * size

    throughput = Throughput(len(sizes), warmup, clock.synchronize)
    with mock.patch('time.perf_counter', clock):
        for i, batch in enumerate(throughput.batches(loader())):
            clock.time += step + (slow_first if i == 0 else 0)
            throughput.add(len(batch))
    return throughput, clock


@pytest.mark.parametrize('sizes, options, images, seconds', [
    ([8, 8, 8], {'step': .5, 'slow_first': 100}, 16, 1.),           # the first of three warms up
    ([4] * 50, {'step': .1, 'slow_first': 30}, 160, 4.),            # ten do
    ([10, 10, 10, 3], {'step': 1., 'warmup': 0}, 33, 4.),           # a short last batch
    ([8], {'step': 2.}, 8, 2.)], ids=str)                           # an epoch of one
def test_iterations_after_the_warm_up_are_counted_and_timed(sizes, options, images, seconds):
    throughput, _ = timed_pass(sizes, **options)
    assert (throughput.images, throughput.seconds) == (images, pytest.approx(seconds))


def test_waiting_for_data_is_timed_and_counted_and_the_device_synchronized_only_at_start_and_end():
    throughput, clock = timed_pass([8] * 4, step=.3, wait=.1, warmup=0)
    assert (throughput.seconds, throughput.waited, clock.synchronized) == pytest.approx((1.6, .4, 2))


def test_more_loader_processes_are_suggested_if_the_device_waits(caplog):
    optimizer_step = SimpleNamespace(lr=.1, non_finite_steps=NonFiniteSteps(3))
    meter = EpochMeter(mock.MagicMock(workers=2), Session(Cpu(), World()), optimizer_step, 'loss', 0)
    for waited, suggested in ((0., False), (.2, True)):
        meter.begin(0, 0)
        meter.throughput, _ = timed_pass([8] * 4, step=1., wait=waited, warmup=0)
        assert meter.finish()['data_wait'] == pytest.approx(waited / (1 + waited), abs=1e-3)
        assert ('--num_workers than 2' in caplog.messages[-1]) == suggested


@pytest.mark.compat
def test_a_window_starts_at_the_last_reading_and_the_total_weighs_finite_values_by_their_counts():
    mean = DeviceMean(torch.device('cpu'))
    mean.add(torch.tensor(1.), 3)
    mean.add(torch.tensor(math.nan), 3)
    assert mean.read_window(World()) == pytest.approx(1)
    mean.add(torch.tensor(math.inf), 3)
    mean.add(torch.tensor(5.), 1)
    assert mean.read_window(World()) == pytest.approx(5)
    assert mean.read(World()) == pytest.approx(2)


@pytest.mark.compat
def test_adding_reads_nothing_from_the_device(monkeypatch):
    mean = DeviceMean(torch.device('cpu'))
    for name in ('item', 'tolist', '__float__', '__bool__'):
        monkeypatch.setattr(torch.Tensor, name, lambda *args: pytest.fail('the host synchronized with the device'))
    mean.add(torch.ones((), requires_grad=True) * 2, 4)


@pytest.mark.compat
def test_top_1_and_top_5_are_counted_and_top_5_of_two_classes_is_everything():
    assert count_correct(torch.arange(10.).expand(3, 10), torch.tensor([9, 5, 0])).tolist() == [1, 2]
    assert count_correct(torch.randn(4, 2), torch.tensor([0, 1, 1, 0])).tolist()[1] == 4
