"""From losses to weight updates: schedule, accumulation window, gradient exchange, scaling and clipping."""
from contextlib import contextmanager

from util.distributed import gradient_sync
from util.lr_schedule import set_lr


class WeightUpdates:
    """One optimizer step per window of `accum_iter` iterations; the last window of an epoch may be shorter.

    Each loss counts as its share of the window at hand, so that a step follows the mean over the window's images.

    Args:
        schedule: learning rate as a function of the fractional epoch; asked once when a window opens.
        clip_grad: 2-norm that a step's gradient is clipped to, or None.
    """

    def __init__(self, model, optimizer, precision, schedule, accum_iter=1, clip_grad=None):
        self.model, self.optimizer, self.precision, self.schedule = model, optimizer, precision, schedule
        self.accum_iter, self.clip_grad = accum_iter, clip_grad
        self.lr = 0.
        self._share = 1.

    @contextmanager
    def iteration(self, i, iterations, epoch):
        """The forward and backward pass of iteration `i` of `iterations` in `epoch` (counted from 0)."""
        opened = i - i % self.accum_iter
        size = min(self.accum_iter, iterations - opened)
        closes = i == opened + size - 1
        self._share = 1. / size
        if i == opened:
            self.lr = self.schedule(epoch + i / iterations)
            set_lr(self.optimizer, self.lr)
        with gradient_sync(self.model, wanted=closes or not self.precision.gradients_stay_in_model):
            yield
        if closes:
            self.precision.step(self.optimizer, self.clip_grad)

    def backward(self, loss):
        """Add the gradients of this iteration's loss to the window's."""
        self.precision.backward(loss * self._share, self.optimizer)
