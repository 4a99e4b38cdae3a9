"""From losses to weight updates: schedule, accumulation window, gradient exchange, scaling and clipping."""
import math
from contextlib import contextmanager

import torch

from util.bad_steps import BadSteps
from util.distributed import gradient_sync
from util.lr_schedule import set_lr
from util.weight_average import NoAverage


class WeightUpdates:
    """One optimizer step per window of `accum_iter` iterations; the last window of an epoch may be shorter.

    Each loss counts as its share of the window at hand, so that a step follows the mean over the window's images. Where
    a loss or gradient is not finite, on whichever process, all processes skip the step.

    Args:
        schedule: learning rate as a function of the fractional epoch; asked once when a window opens.
        clip_grad: 2-norm that a step's gradient is clipped to, or None.
        bad_steps: util.bad_steps.BadSteps, told of every step.
        average: util.weight_average.WeightAverage, told of every step.
    """

    def __init__(self, model, optimizer, precision, schedule, accum_iter=1, clip_grad=None, bad_steps=None,
                 average=None):
        self.model, self.optimizer, self.precision, self.schedule = model, optimizer, precision, schedule
        self.accum_iter, self.clip_grad = accum_iter, clip_grad
        self.bad_steps, self.average = bad_steps or BadSteps(math.inf), average or NoAverage()
        self.lr = 0.
        self.first = 0              # iteration that the first window of this epoch opens at: not 0 after a resume
        self.complete = True        # no window is open
        self._share, self._at = 1., (0, 0)

    @contextmanager
    def iteration(self, i, iterations, epoch):
        """The forward and backward pass of iteration `i` of `iterations` in `epoch` (counted from 0)."""
        opened = i - (i - self.first) % self.accum_iter
        size = min(self.accum_iter, iterations - opened)
        self.complete = i == opened + size - 1
        self._share, self._at = 1. / size, (epoch, i)
        if i == opened:
            self.lr = self.schedule(epoch + i / iterations)
            set_lr(self.optimizer, self.lr)
        with gradient_sync(self.model, wanted=self.complete or not self.precision.gradients_stay_in_model):
            yield
        if self.complete:
            skipped = self.precision.step(self.optimizer, self.clip_grad)
            self.bad_steps.add(skipped)
            self.average.update(skipped)

    def backward(self, loss):
        """Add the gradients of this iteration's loss to the window's."""
        self.bad_steps.remember(*self._at, self.lr, loss)
        finite = torch.isfinite(loss.detach())
        # A loss that is not finite can have finite gradients: make them NaN, and their exchange tells all processes.
        share = torch.where(finite, torch.full_like(loss, self._share), torch.full_like(loss, math.nan))
        self.precision.backward(loss * share.detach(), self.optimizer)
