"""Accumulation windows, schedule and clipping."""
import pytest
import torch

from util.devices.precision import FullPrecision
from util.training.optimizer_step import OptimizerStep

pytestmark = pytest.mark.compat


class Linear(torch.nn.Module):
    """One trained weight; the loss is the weight times the mean of the input."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.fixed = torch.nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, x):
        return (self.weight * x).mean()


def run(values, accum_iter, clip_grad=None, schedule=lambda epoch: 1., ema=lambda weights: None):
    """Weights after each iteration of plain SGD over inputs `values`; `ema` makes an EMA of them."""
    model, weights = Linear(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=1.)
    optimizer_step = OptimizerStep(model, optimizer, FullPrecision(), schedule, accum_iter, clip_grad,
                                   ema=ema(FullPrecision().trained_weights(model, None)))
    for i, value in enumerate(values):
        optimizer_step.set_lr(0, i, len(values))
        with optimizer_step.gradient_sync():
            optimizer_step.backward(model(torch.tensor([float(value)])))
        if optimizer_step.due:
            optimizer_step.update()
        weights.append(model.weight.item())
    return weights


def test_a_window_makes_one_step_along_the_mean_gradient():
    assert run([1, 3, 5, 7], accum_iter=2) == pytest.approx([0, -2, -2, -8])


def test_the_last_window_of_an_epoch_averages_over_its_own_size():
    assert run([1, 3, 10], accum_iter=2) == pytest.approx([0, -2, -12])


def test_the_schedule_is_evaluated_once_per_window_at_the_fractional_epoch():
    asked = []
    run([1] * 5, accum_iter=2, schedule=lambda epoch: asked.append(epoch) or .1)
    assert asked == pytest.approx([0, .4, .8])


def test_clipping_limits_the_norm_of_the_accumulated_gradient():
    assert run([1, 3, .25], accum_iter=2, clip_grad=.5) == pytest.approx([0, -.5, -.75], abs=1e-5)
