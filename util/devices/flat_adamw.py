"""AdamW over one flat buffer, and a loss scale: both decide on the device, so that the host never waits."""
import math
from typing import Any, Dict, Iterable, Optional, Tuple, Union

import torch
from torch import Tensor

GROWTH_INTERVAL = 2000      # steps without overflow after which a dynamic loss scale doubles


class FlatAdamW(torch.optim.Optimizer):
    """AdamW, decoupled weight decay (arXiv:1711.05101), whose number of launches depends on the groups only.

    Parameters (fp32, on one device), their gradients and moments become views of flat buffers and stay there. All of
    them count as having a gradient. state_dict has the layout of torch.optim.AdamW; the step count is a tensor.
    """

    def __init__(self, params: Iterable[Any], lr: float = 1e-3, betas: Tuple[float, float] = (.9, .999),
                 eps: float = 1e-8, weight_decay: float = 1e-2):
        super().__init__(params, {'lr': lr, 'betas': betas, 'eps': eps, 'weight_decay': weight_decay})
        groups = [group['params'] for group in self.param_groups]
        size, device = sum(p.numel() for group in groups for p in group), groups[0][0].device
        buffers = [torch.zeros(size, device=device) for _ in range(4)]
        self._weights, self.gradients, self._first, self._second = buffers
        self._step, self._betas = torch.zeros((), device=device), torch.tensor(betas, device=device)
        self._log_betas = torch.tensor([math.log(beta) for beta in betas], device=device)
        self._slices, end = [], 0           # of the groups
        for group in groups:
            start = end
            for p in group:
                weight, gradient, first, second = (buffer[end:end + p.numel()].view(p.shape) for buffer in buffers)
                p.data, p.grad = weight.copy_(p.detach()), gradient
                self.state[p] = {'step': self._step, 'exp_avg': first, 'exp_avg_sq': second}
                end += p.numel()
            self._slices.append(slice(start, end))

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Set the gradients to 0; they always keep their memory."""
        self.gradients.zero_()

    def clip_grad_norm_(self, max_norm: Optional[float] = None) -> Tensor:
        """Clip the gradients to a 2-norm of `max_norm` if given; returns the norm before, 0-dimensional."""
        norm = self.gradients.norm()
        if max_norm is not None:
            self.gradients.mul_((max_norm / (norm + 1e-6)).clamp(max=1.))
        return norm

    @torch.no_grad()
    def step(self, finite: Tensor) -> None:
        """Update weights, moments and step count if `finite`, a 0-dimensional bool tensor; else clear the gradients."""
        beta1, beta2 = self.defaults['betas']
        gradients = self.gradients.masked_fill_(~finite, 0.)        # not a product: inf * 0 is NaN
        decay1, decay2 = self._betas.masked_fill(~finite, 1.)
        self._step.add_(finite)
        self._first.mul_(decay1).add_(gradients, alpha=1 - beta1)
        self._second.mul_(decay2).addcmul_(gradients, gradients, value=1 - beta2)
        # 1 - beta ** step, without cancellation; of 1 where the first step of all is skipped
        bias1, bias2 = torch.expm1(self._log_betas * self._step.clamp(min=1.)).neg_()
        update = self._second.sqrt().mul_(bias1 / bias2.sqrt()).add_(bias1 * self.defaults['eps'])
        torch.div(self._first, update, out=update)
        for part, group in zip(self._slices, self.param_groups):
            update[part].add_(self._weights[part], alpha=group['weight_decay'])
        update.mul_(finite)
        for part, group in zip(self._slices, self.param_groups):
            self._weights[part].add_(update[part], alpha=-group['lr'])

    @torch.no_grad()
    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Restore a state_dict of this class or of torch.optim.AdamW, also with step counts that are numbers."""
        views = dict(self.state)
        super().load_state_dict(state_dict)
        self._step.fill_(max((int(loaded['step']) for loaded in self.state.values()), default=0))
        for parameter, view in views.items():
            for name in ('exp_avg', 'exp_avg_sq'):      # none of a parameter that has had no gradient
                view[name].copy_(self.state[parameter].get(name, torch.zeros_like(parameter)))
        self.state.update(views)


class LossScale:
    """Loss scale, as GradScaler's: a dynamic one doubles after GROWTH_INTERVAL good steps, halves after an overflow."""

    def __init__(self, device: torch.device, fixed: Optional[float] = None):
        self._fixed = fixed
        self._scale = torch.full((), 2. ** 16 if fixed is None else fixed, device=device)
        self._good_steps = torch.zeros((), device=device)

    def scale(self, loss: Tensor) -> Tensor:
        """The scaled loss."""
        return loss * self._scale

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the scale."""
        gradients = [optimizer.gradients] if isinstance(optimizer, FlatAdamW) else [
            p.grad for group in optimizer.param_groups for p in group['params'] if p.grad is not None]
        factor = self._scale.reciprocal()
        for gradient in gradients:
            gradient.mul_(factor)

    def update(self, skipped: Union[int, Tensor]) -> None:
        """Adapt a dynamic scale after a step; `skipped` is 1 if it was skipped, else 0."""
        if self._fixed is None:
            self._good_steps.add_(1).mul_(1 - skipped)
            grows = self._good_steps >= GROWTH_INTERVAL
            self._scale.mul_(1 - .5 * skipped + grows).clamp_(max=2. ** 126)        # finite
            self._good_steps.masked_fill_(grows, 0.)

    def state_dict(self) -> Dict[str, float]:
        """As torch.amp.GradScaler's; synchronizes with the device."""
        return {'scale': float(self._scale), 'growth_factor': 2., 'backoff_factor': .5,
                'growth_interval': GROWTH_INTERVAL, '_growth_tracker': int(self._good_steps)}

    def load_state_dict(self, state: Dict[str, float]) -> None:
        """Restore a state_dict; a fixed scale stays as it is."""
        if self._fixed is None and 'scale' in state:        # not that of apex
            self._scale.fill_(state['scale'])
            self._good_steps.fill_(state['_growth_tracker'])
