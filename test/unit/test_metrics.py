"""Means on the device, and accuracy."""
import math

import pytest
import torch

from engine_finetune import count_correct
from util.distributed import World
from util.progress import DeviceMean

pytestmark = pytest.mark.compat


def test_a_window_starts_after_the_last_reading_and_the_total_keeps_all_by_their_counts_but_what_is_not_finite():
    mean = DeviceMean(torch.device('cpu'))
    mean.add(torch.tensor(1.), 3)
    mean.add(torch.tensor(math.nan), 3)
    assert mean.read_window(World()) == pytest.approx(1)
    mean.add(torch.tensor(math.inf), 3)
    mean.add(torch.tensor(5.), 1)
    assert mean.read_window(World()) == pytest.approx(5)
    assert mean.read(World()) == pytest.approx(2)


def test_adding_reads_nothing_from_the_device(monkeypatch):
    mean = DeviceMean(torch.device('cpu'))
    for name in ('item', 'tolist', '__float__', '__bool__'):
        monkeypatch.setattr(torch.Tensor, name, lambda *args: pytest.fail('the host waited for the device'))
    mean.add(torch.ones((), requires_grad=True) * 2, 4)


def test_top_1_and_top_5_are_counted_and_top_5_of_two_classes_is_everything():
    assert count_correct(torch.arange(10.).expand(3, 10), torch.tensor([9, 5, 0])).tolist() == [1, 2]
    assert count_correct(torch.randn(4, 2), torch.tensor([0, 1, 1, 0])).tolist()[1] == 4
