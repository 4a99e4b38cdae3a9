"""--ema: an exponential moving average of the weights, which is judged and used in their place (arXiv:1703.01780)."""
from contextlib import contextmanager

import torch

from util.errors import UserError
from util.log import logger

JUDGED = ('acc1', 'acc5', 'loss')       # what is told of the weights as trained, too


class WeightAverage:
    """Lies beside the weights on their device, in fp32; moves towards them after every step that is not skipped.

    At update n, counted from 0, the average keeps the share min(decay, (1 + n) / (10 + n)) of itself, so that a short
    training does not remember its random start.

    Args:
        decay: share that the average keeps of itself, between 0 and 1.
        weights: {name: parameter} that the optimizer updates, in fp32; the average starts from them.
    """

    def __init__(self, decay, weights):
        self._decay, self._names, self._weights = decay, list(weights), list(weights.values())
        self._averages = [weight.detach().clone() for weight in self._weights]
        device = self._weights[0].device
        self._updates = torch.zeros((), device=device)
        self._move = _fastest(device)

    @torch.no_grad()
    def update(self, skipped):
        """Follow a step; `skipped` is 1 where it was not taken, else 0: a number, or a tensor that nobody waits for."""
        if not torch.is_tensor(skipped) and skipped:
            return
        taken = 1 - skipped
        share = (9. / (self._updates + 10.)).clamp(min=1. - self._decay) * taken
        self._move(self._averages, self._weights, share)
        self._updates += taken

    def judge(self, model, evaluate):
        """What `evaluate()` gives of `model` with the average as its weights, and under 'raw_...' with its own.

        Args:
            model: as its precision made it.
            evaluate: returns a dict that has JUDGED.
        """
        logger.info('with the weights as trained:')
        raw = evaluate()
        logger.info('with their average (--ema):')
        with self.within(model):
            return {**evaluate(), **{'raw_' + name: raw[name] for name in JUDGED}}

    @contextmanager
    def within(self, model):
        """A context in which `model` has the average as its weights, in its own type."""
        parameters = dict(model.named_parameters())
        own = [parameters[name].detach() for name in self._names]
        kept = [weight.clone() for weight in own]
        _copy(self._averages, own)
        try:
            yield
        finally:
            _copy(kept, own)

    def state(self, model_state):
        """What a checkpoint keeps: a whole state_dict, and the number of updates.

        Args:
            model_state: that of the model, for what is not trained.
        """
        return {'model_ema': {**model_state, **dict(zip(self._names, self._averages))},
                'ema_updates': int(self._updates)}

    def load(self, state, path):
        """Go on from what `state` gave.

        Raises:
            UserError: it is of another model.
        """
        saved = state['model_ema']
        for name, average in zip(self._names, self._averages):
            if name not in saved or saved[name].shape != average.shape:
                raise UserError('{}: its averaged weights (--ema) are of another model, {} differs'.format(path, name))
        _copy([saved[name] for name in self._names], self._averages)
        self._updates.fill_(state.get('ema_updates') or 0)


class NoAverage:
    """Where there is no --ema."""

    def update(self, skipped):
        pass

    def judge(self, model, evaluate):
        return evaluate()

    @contextmanager
    def within(self, model):
        yield

    def state(self, model_state):
        return {}


@torch.no_grad()
def _copy(sources, targets):
    for source, target in zip(sources, targets):
        target.copy_(source)


def _fastest(device):
    """A function that moves tensors a `share` (a tensor on the device) of the way to others, in place."""
    probe = [torch.zeros(2, device=device)]
    try:
        _all_at_once(probe, probe, torch.zeros((), device=device))
        return _all_at_once
    except (AttributeError, TypeError, RuntimeError):
        return _one_by_one                  # some releases have it for some devices only


def _all_at_once(averages, weights, share):
    torch._foreach_lerp_(averages, weights, [share] * len(averages))


def _one_by_one(averages, weights, share):
    for average, weight in zip(averages, weights):
        average.lerp_(weight, share)
