"""Linear probing: a classifier that learns nothing but a linear layer on the features of a frozen encoder.

The protocol is that of arXiv:2111.06377, appendix A.1: a batch normalisation without scale and shift stands before the
linear layer. Shapes: N images, C channels, D width.
"""
import torch
from torch import nn

from util.devices.precision import FullPrecision
from util.distributed.world import World
from util.models.timm_adapter import trunc_normal_

EPS = 1e-6          # of the batch normalisation


def probing_head(dim, classes):
    """(N, D) -> (N, classes): batch normalisation without scale and shift, then a linear layer."""
    head = nn.Sequential(nn.BatchNorm1d(dim, eps=EPS, affine=False), nn.Linear(dim, classes))
    trunc_normal_(head[1].weight, std=.01)
    nn.init.zeros_(head[1].bias)
    return head


class LinearProbe:
    """A classifier with a probing head, taken apart: the encoder computes in the run's precision, the head in fp32.

    Args:
        model: models_vit.VisionTransformer whose head is a `probing_head`, on its device; it is changed.
        precision: from choose_precision.
        world: whose processes train the head together.
    """

    def __init__(self, model, precision, world=None):
        self._world = world or World()
        self.head, model.head = model.head, nn.Identity()
        # Kept as they are: a precision that halves an encoder puts new tensors into it.
        self._weights = model.state_dict()
        self._encoder = precision.prepare_inference(model.eval())
        self._autocast = precision.autocast
        self.precision = FullPrecision()        # of the head, which is small; no gradient leaves it
        if precision.name != 'fp32':
            self.precision.name = '{} for the frozen encoder, fp32 for the head'.format(precision.name)

    @torch.no_grad()
    def features(self, imgs):
        """(N, C, H, W), normalised -> (N, D), without gradients, in fp32."""
        with self._autocast():
            return self._encoder(imgs).float()

    def __call__(self, imgs):
        """(N, C, H, W), normalised -> logits (N, classes)."""
        return self.head(self.features(imgs))

    def eval(self):
        """Let the batch normalisation use its running statistics; the encoder never does anything else.

        They are each process's own: the first one's count, which checkpoints keep. All processes must call it.
        """
        self._world.broadcast_parameters(self.head)
        self.head.eval()

    def state_dict(self):
        """All weights by the names that published code has for them: the frozen encoder's, head.0 and head.1."""
        return {**self._weights, **{'head.' + name: value for name, value in self.head.state_dict().items()}}


class LARS(torch.optim.Optimizer):
    """Momentum whose step is scaled, matrix by matrix, to the size of the weights (You et al., arXiv:1708.03888).

    For a matrix w with gradient g: d = g + weight_decay w, times trust_coefficient |w| / |d| where neither norm is 0.
    1-D tensors, such as biases, neither decay nor are scaled: d = g. Then m = momentum m + d, and w = w - lr m.
    """

    def __init__(self, params, lr, weight_decay=0., momentum=.9, trust_coefficient=.001):
        super().__init__(params, {'lr': lr, 'weight_decay': weight_decay, 'momentum': momentum,
                                  'trust_coefficient': trust_coefficient})

    @torch.no_grad()
    def step(self):
        """Update the weights by their gradients."""
        for group in self.param_groups:
            for parameter in group['params']:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    if not state:
                        state['mu'] = torch.zeros_like(parameter)
                    state['mu'].mul_(group['momentum']).add_(_direction(parameter, group))
                    parameter.add_(state['mu'], alpha=-group['lr'])


def _direction(parameter, group):
    """d of the formula above; the norms stay on the device."""
    if parameter.dim() < 2:
        return parameter.grad
    direction = parameter.grad.add(parameter, alpha=group['weight_decay'])
    size, length = parameter.norm(), direction.norm()
    ratio = group['trust_coefficient'] * size / length
    return direction * torch.where((size > 0) & (length > 0), ratio, torch.ones_like(ratio))


def folded(weights):
    """The weights of a classifier, a probing head's two layers made one linear layer that gives the same logits.

    Args:
        weights: dict of tensors by name; one without such a head is given back.
    """
    parts = [weights.get('head.' + name) for name in ('1.weight', '1.bias', '0.running_mean', '0.running_var')]
    if any(part is None for part in parts):
        return weights
    weight, bias, mean, var = (part.double() for part in parts)
    if weight.dim() != 2 or [bias.shape, mean.shape, var.shape] != [weight.shape[:1], *2 * [weight.shape[1:]]]:
        return weights
    weight = weight / (var + EPS).sqrt()
    plain = {name: value for name, value in weights.items() if not name.startswith('head.')}
    return {**plain, 'head.weight': weight.float(), 'head.bias': (bias - weight @ mean).float()}
