"""Means on the device, accuracy, and the end of a run whose loss is lost."""
import math

import pytest
import torch

from util.distributed import World
from util.errors import UserError
from util.metrics import DeviceMean, check_finite, count_correct


def test_a_mean_weighs_each_value_by_its_count():
    mean = DeviceMean(torch.device('cpu'))
    mean.add(torch.tensor(1.), 3)
    mean.add(torch.tensor(5.), 1)
    assert mean.read(World()) == pytest.approx(2)


def test_a_window_starts_after_the_last_reading_and_the_total_keeps_all():
    mean = DeviceMean(torch.device('cpu'))
    mean.add(torch.tensor(1.))
    assert mean.read_window(World()) == pytest.approx(1)
    mean.add(torch.tensor(3.))
    assert mean.read_window(World()) == pytest.approx(3)
    assert mean.read(World()) == pytest.approx(2)


def test_adding_reads_nothing_from_the_device(monkeypatch):
    mean = DeviceMean(torch.device('cpu'))
    for name in ('item', 'tolist', '__float__', '__bool__'):
        monkeypatch.setattr(torch.Tensor, name, lambda *args: pytest.fail('the host waited for the device'))
    mean.add(torch.ones((), requires_grad=True) * 2, 4)


def test_top_1_and_top_5_are_counted():
    logits = torch.arange(10.).expand(3, 10)
    assert count_correct(logits, torch.tensor([9, 5, 0])).tolist() == [1, 2]


def test_top_5_of_two_classes_is_everything():
    assert count_correct(torch.randn(4, 2), torch.tensor([0, 1, 1, 0])).tolist()[1] == 4


@pytest.mark.parametrize('loss', [math.nan, math.inf])
def test_a_lost_loss_ends_the_run_in_one_line_that_says_what_to_do(loss):
    with pytest.raises(UserError, match=r'epoch 3, iteration 40: lower --blr'):
        check_finite(loss, 3, 40)
