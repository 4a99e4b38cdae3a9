"""Linear probing: train a linear classifier on the features of a frozen encoder, and LARS, its optimizer.

Protocol of arXiv:2111.06377, appendix A.1: a batch normalisation without scale and shift precedes the linear layer.
Shapes: N images, C channels, D width.
"""
from typing import Any, Dict, Iterable, Optional

import torch
from torch import Tensor, nn

from util.devices.precision import FullPrecision
from util.distributed.world import World
from util.models.timm_adapter import trunc_normal_

EPS = 1e-6          # of BatchNorm


def probing_head(dim: int, classes: int) -> nn.Sequential:
    """(N, D) -> (N, classes): batch normalisation without scale and shift, then a linear layer."""
    head = nn.Sequential(nn.BatchNorm1d(dim, eps=EPS, affine=False), nn.Linear(dim, classes))
    trunc_normal_(head[1].weight, std=.01)
    nn.init.zeros_(head[1].bias)
    return head


class LinearProbe:
    """Frozen encoder in the run's precision, and trainable head in fp32.

    They are parts of a VisionTransformer with a `probing_head`, on its device; its head is removed.
    """

    def __init__(self, model: nn.Module, precision: FullPrecision, world: Optional[World] = None):
        self._world = world or World()
        self.head, model.head = model.head, nn.Identity()
        # Before prepare_inference, which may replace them by half-precision tensors.
        self._weights = model.state_dict()
        self._encoder = precision.prepare_inference(model.eval())
        self._autocast = precision.autocast
        self.precision = FullPrecision()        # of the head; no gradient reaches the encoder
        if precision.name != 'fp32':
            self.precision.name = '{} for the frozen encoder, fp32 for the head'.format(precision.name)

    @torch.no_grad()
    def features(self, imgs: Tensor) -> Tensor:
        """(N, C, H, W), normalised -> (N, D) in fp32, without gradients."""
        with self._autocast():
            return self._encoder(imgs).float()

    def __call__(self, imgs: Tensor) -> Tensor:
        """(N, C, H, W), normalised -> logits (N, classes)."""
        return self.head(self.features(imgs))

    def eval(self) -> None:
        """Collective: use the running statistics of the first process, which checkpoints keep, on all processes."""
        self._world.broadcast_parameters(self.head)
        self.head.eval()

    def state_dict(self) -> Dict[str, Tensor]:
        """Weights of encoder and head under the names of the published code; the head's are head.0 and head.1."""
        return {**self._weights, **{'head.' + name: value for name, value in self.head.state_dict().items()}}


class LARS(torch.optim.Optimizer):
    """LARS, layer-wise adaptive rate scaling (You et al., arXiv:1708.03888).

    For a matrix w with gradient g: d = g + weight_decay w, times trust_coefficient |w| / |d| unless a norm is 0.
    For a 1-D tensor, such as a bias: d = g, without weight decay. Then m = momentum m + d and w = w - lr m.
    """

    def __init__(self, params: Iterable[Any], lr: float, weight_decay: float = 0., momentum: float = .9,
                 trust_coefficient: float = .001):
        super().__init__(params, {'lr': lr, 'weight_decay': weight_decay, 'momentum': momentum,
                                  'trust_coefficient': trust_coefficient})

    @torch.no_grad()
    def step(self) -> None:
        """Update the weights."""
        for group in self.param_groups:
            for parameter in group['params']:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    if not state:
                        state['mu'] = torch.zeros_like(parameter)
                    state['mu'].mul_(group['momentum']).add_(_direction(parameter, group))
                    parameter.add_(state['mu'], alpha=-group['lr'])


def _direction(parameter: Tensor, group: Dict[str, Any]) -> Tensor:
    """d of the formula above; the norms are not copied to the host."""
    if parameter.dim() < 2:
        return parameter.grad
    direction = parameter.grad.add(parameter, alpha=group['weight_decay'])
    size, length = parameter.norm(), direction.norm()
    ratio = group['trust_coefficient'] * size / length
    return direction * torch.where((size > 0) & (length > 0), ratio, torch.ones_like(ratio))


def folded(weights: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Fold the batch normalisation of a probing head into its linear layer; other weights are returned unchanged."""
    parts = [weights.get('head.' + name) for name in ('1.weight', '1.bias', '0.running_mean', '0.running_var')]
    if any(part is None for part in parts):
        return weights
    weight, bias, mean, var = (part.double() for part in parts)
    weight = weight / (var + EPS).sqrt()
    plain = {name: value for name, value in weights.items() if not name.startswith('head.')}
    return {**plain, 'head.weight': weight.float(), 'head.bias': (bias - weight @ mean).float()}
