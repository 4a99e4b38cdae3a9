"""--ema: an exponential moving average of the weights, which is judged and used in their place (arXiv:1703.01780)."""
from contextlib import contextmanager

import torch

from util.errors import UserError
from util.log import logger

JUDGED = ('acc1', 'acc5', 'loss')       # what is told of the weights as trained, too


class EMA:
    """Lies beside the weights on their device, in fp32; moves towards them after every step that is not skipped.

    At update n, counted from 0, the average keeps the share min(decay, (1 + n) / (10 + n)) of itself, so that a short
    training does not remember its random start.

    Args:
        decay: share that the average keeps of itself, between 0 and 1.
        weights: {name: parameter} that the optimizer updates, in fp32; the average starts from them.
    """

    def __init__(self, decay, weights):
        self._decay, self._weights = decay, weights
        self._averages = {name: weight.detach().clone() for name, weight in weights.items()}
        self._updates = torch.zeros((), device=next(iter(weights.values())).device)

    @torch.no_grad()
    def update(self, skipped):
        """Follow a step; `skipped` is 1 where it was not taken, else 0: a number, or a tensor that nobody waits for."""
        taken = 1 - skipped
        share = (9. / (self._updates + 10.)).clamp(min=1. - self._decay) * taken
        for name, average in self._averages.items():
            average.lerp_(self._weights[name], share)
        self._updates += taken

    def evaluate(self, model, evaluate):
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
        own = {name: parameter.detach() for name, parameter in model.named_parameters() if name in self._averages}
        kept = {name: weight.clone() for name, weight in own.items()}
        _copy(self._averages, own)
        try:
            yield
        finally:
            _copy(kept, own)

    def state_dict(self, model_state):
        """What a checkpoint keeps: a whole state_dict, and the number of updates.

        Args:
            model_state: that of the model, for what is not trained.
        """
        return {'model_ema': {**model_state, **self._averages}, 'ema_updates': int(self._updates)}

    def load_state_dict(self, state, path):
        """Take what `state_dict` gave.

        Raises:
            UserError: it is of another model.
        """
        saved = state['model_ema']
        for name, average in self._averages.items():
            if name not in saved or saved[name].shape != average.shape:
                raise UserError('{}: its averaged weights (--ema) are of another model, {} differs'.format(path, name))
        _copy(saved, self._averages)
        self._updates.fill_(state.get('ema_updates') or 0)


@torch.no_grad()
def _copy(sources, targets):
    for name, target in targets.items():
        target.copy_(sources[name])
