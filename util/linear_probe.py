"""Linear probing: a classifier that learns nothing but a linear layer on the features of a frozen encoder.

The protocol is that of arXiv:2111.06377, appendix A.1: a batch normalisation without scale and shift stands before the
linear layer. Shapes: N images, C channels, D width.
"""
import torch
from torch import nn

from util.precision import FullPrecision
from util.timm_compat import trunc_normal_

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
        precision: from util.precision.choose.
    """

    def __init__(self, model, precision):
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
        """Let the batch normalisation use its running statistics; the encoder never does anything else."""
        self.head.eval()

    def state_dict(self):
        """All weights by the names that published code has for them: the frozen encoder's, head.0 and head.1."""
        return {**self._weights, **{'head.' + name: value for name, value in self.head.state_dict().items()}}


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
