"""Exponential moving average of the weights for --ema, used for evaluation and inference (arXiv:1703.01780)."""
from contextlib import contextmanager
from typing import Any, Dict, Iterator, Union

import torch


class EMA:
    """fp32 average on the device of the weights, updated after every optimizer step that is not skipped.

    At update n, counted from 0, the decay is min(decay, (1 + n) / (10 + n)): in a short training the random
    initialization does not dominate.

    Args:
        decay: between 0 and 1.
        weights: {name: fp32 parameter that the optimizer updates}; their current values initialize the average.
    """

    def __init__(self, decay: float, weights: Dict[str, torch.Tensor]):
        self._decay, self._weights = decay, weights
        self._averages = {name: weight.detach().clone() for name, weight in weights.items()}
        self._updates = torch.zeros((), device=next(iter(weights.values())).device)

    @torch.no_grad()
    def update(self, skipped: Union[int, torch.Tensor]) -> None:
        """Update after a step; `skipped` is 1 for a skipped step, else 0. A tensor is not read by the host."""
        taken = 1 - skipped
        weight = (9. / (self._updates + 10.)).clamp(min=1. - self._decay) * taken
        for name, average in self._averages.items():
            average.lerp_(self._weights[name], weight)
        self._updates += taken

    @contextmanager
    def applied_to(self, model: torch.nn.Module) -> Iterator[None]:
        """Context in which `model` has the EMA weights, cast to its own dtype, as for an evaluation.

        Args:
            model: as its precision made it, not in DistributedDataParallel.
        """
        own = {name: parameter.detach() for name, parameter in model.named_parameters() if name in self._averages}
        raw = {name: weight.clone() for name, weight in own.items()}
        _copy(self._averages, own)
        try:
            yield
        finally:
            _copy(raw, own)

    def state_dict(self) -> Dict[str, Any]:
        """'model_ema': the averages of the trained weights by name; 'ema_updates': number of updates."""
        return {'model_ema': dict(self._averages), 'ema_updates': int(self._updates)}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Restore a state_dict, or a checkpoint with its keys; KeyError or RuntimeError for that of another model."""
        _copy(state['model_ema'], self._averages)
        self._updates.fill_(state.get('ema_updates') or 0)


@torch.no_grad()
def _copy(sources, targets):
    for name, target in targets.items():
        target.copy_(sources[name])
