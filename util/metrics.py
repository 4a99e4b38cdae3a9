"""Means that stay on the device until somebody reads them, and accuracy."""
import math

import torch


class DeviceMean:
    """A running mean of device scalars: add never waits for the device, reading does.

    Values that are not finite are left out: the step that they belong to is skipped too.
    """

    def __init__(self, device):
        self._zero = torch.zeros(2, device=device)
        self._window = self._zero.clone()       # sum and count of this process since the last reading
        self._total = [0., 0.]                  # sum and count of all processes up to there

    def add(self, value, count=1):
        """Add a scalar tensor that is the mean over `count` items."""
        value = value.detach().float()
        finite = torch.isfinite(value)
        # by where, since a product would let NaN through
        self._window += torch.where(finite, torch.stack([value * count, torch.full_like(value, count)]), self._zero)

    def read_window(self, world):
        """Mean since the last call, over all processes."""
        recent, self._window = self._window, self._zero.clone()
        total, count = world.sum(recent).tolist()
        self._total = [self._total[0] + total, self._total[1] + count]
        return _mean(total, count)

    def read(self, world):
        """Mean of everything, over all processes."""
        self.read_window(world)
        return _mean(*self._total)

    def state(self, world):
        """What a resumed run goes on from: the total, and what each process has added since; plain numbers."""
        return {'total': list(self._total), 'windows': world.gather(self._window)}

    def load_state(self, state, world):
        """Restore what `state` gave; where the number of processes has changed, the first takes what all had."""
        self._total = list(state['total'])
        windows = state['windows']
        if len(windows) != world.size:
            windows = [[sum(values) for values in zip(*windows)]] + [[0., 0.]] * (world.size - 1)
        self._window = self._zero.new_tensor(windows[world.rank])


def _mean(total, count):
    return total / count if count else math.nan


def count_correct(logits, labels, ks=(1, 5)):
    """How many labels are among the k highest logits, for each k (at most the number of classes): (len(ks),) tensor."""
    ks = [min(k, logits.shape[1]) for k in ks]
    ranked = logits.topk(max(ks), dim=1).indices
    hits = ranked.eq(labels[:, None])
    return torch.stack([hits[:, :k].any(dim=1).float().sum() for k in ks])
