"""Means that stay on the device until somebody reads them, and accuracy."""
import math

import torch

from util.errors import UserError


class DeviceMean:
    """A running mean of device scalars: add never waits for the device, reading does."""

    def __init__(self, device):
        self._zero = torch.zeros(2, device=device)
        self._total, self._window = self._zero.clone(), self._zero.clone()

    def add(self, value, count=1):
        """Add a scalar tensor that is the mean over `count` items."""
        self._window += torch.stack([value.detach().float() * count, torch.full_like(self._zero[0], count)])

    def read_window(self, world):
        """Mean since the last call, over all processes."""
        recent, self._window = self._window, self._zero.clone()
        self._total += recent
        return _mean(world.sum(recent.clone()))

    def read(self, world):
        """Mean of everything, over all processes."""
        return _mean(world.sum(self._total + self._window))


def _mean(total_and_count):
    total, count = total_and_count.tolist()
    return total / count if count else math.nan


def check_finite(loss, epoch, iteration):
    """Stop a run whose loss is lost; what was saved before stays."""
    if not math.isfinite(loss):
        raise UserError('the loss is {} at epoch {}, iteration {}: lower --blr (or --lr), lengthen --warmup_epochs or '
                        'set --clip_grad 1.0; the checkpoints saved so far are intact'.format(loss, epoch, iteration))


def count_correct(logits, labels, ks=(1, 5)):
    """How many labels are among the k highest logits, for each k (at most the number of classes): (len(ks),) tensor."""
    ks = [min(k, logits.shape[1]) for k in ks]
    ranked = logits.topk(max(ks), dim=1).indices
    hits = ranked.eq(labels[:, None])
    return torch.stack([hits[:, :k].any(dim=1).float().sum() for k in ks])
