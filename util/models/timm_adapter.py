"""timm 0.4.5 to 1.0.x behind one interface: everything that the program takes from timm comes through here."""
import warnings

import numpy as np
import torch
from PIL import Image
from timm import data as timm_data
from timm.data import auto_augment
from timm.data.mixup import cutmix_bbox_and_lam, mixup_target
from timm.data.random_erasing import RandomErasing
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models.vision_transformer import Block, PatchEmbed
from torch import nn
from torch.nn import functional as F

from util.compat import accepts

try:
    from timm.layers import trunc_normal_
except ImportError:
    from timm.models.layers import trunc_normal_

__all__ = ['LabelSmoothingCrossEntropy', 'Mixup', 'PatchEmbed', 'RandomErasing', 'SoftTargetCrossEntropy',
           'TransformerBlock', 'color_augmentation', 'trunc_normal_']

# timm 0.4.5 hands torchvision arguments in older forms, of which every loader process would warn.
warnings.filterwarnings('ignore', 'Argument interpolation should be of type InterpolationMode')
warnings.filterwarnings('ignore', 'To copy construct from a tensor', module='torchvision')


def color_augmentation(policy, **options):
    """timm's AutoAugment, RandAugment, AugMix or, where `policy` is None, color jitter: a list of steps for PIL images.

    Args:
        options: further ones of timm.data.create_transform.
    """
    steps = timm_data.create_transform(is_training=True, separate=True, auto_augment=policy, **options)[1].transforms
    for step in steps:
        for operation in [*getattr(step, 'ops', ()), *(op for ops in getattr(step, 'policy', ()) for op in ops)]:
            if operation.aug_fn is auto_augment.posterize:
                operation.aug_fn = posterize
    return steps


def posterize(image, bits, **_):
    """Keep the highest `bits` bits of a channel; none makes it black, which Pillow 13 refuses to do."""
    return auto_augment.posterize(image, bits) if bits >= 1 else Image.new(image.mode, image.size)


class TransformerBlock(Block):
    """timm's pre-norm transformer block with a bias in qkv, the same in all releases, that can leave out tokens.

    Its state_dict keys are timm's.
    """

    def __init__(self, dim, num_heads, mlp_ratio, norm_layer, drop_path=0.):
        super().__init__(dim=dim, num_heads=num_heads, mlp_ratio=mlp_ratio, qkv_bias=True, drop_path=drop_path,
                         norm_layer=norm_layer)
        self.attn = SelfAttention(self.attn)

    def forward(self, x, first=0):
        """(N, L, D) -> (N, L - first, D): every token attends to all tokens, those from `first` on are kept."""
        drop_path1 = self.drop_path1 if hasattr(self, 'drop_path1') else self.drop_path
        drop_path2 = self.drop_path2 if hasattr(self, 'drop_path2') else self.drop_path
        x = x[:, first:] + drop_path1(self.attn(self.norm1(x), first))
        return x + drop_path2(self.mlp(self.norm2(x)))


class SelfAttention(nn.Module):
    """Softmax self-attention by the layers of timm's."""

    def __init__(self, layers):
        super().__init__()
        self.num_heads, self.qkv, self.proj = layers.num_heads, layers.qkv, layers.proj

    def forward(self, x, first=0):
        """(N, L, D) -> (N, L - first, D)."""
        _, length, dim = x.shape        # the number of images is left open, which an exported graph needs
        qkv = self.qkv(x).reshape(-1, length, 3, self.num_heads, dim // self.num_heads).permute(2, 0, 3, 1, 4)
        x = attention(qkv[0, :, :, first:], qkv[1], qkv[2])
        return self.proj(x.transpose(1, 2).reshape(-1, length - first, dim))


def attention(q, k, v):
    """(N, heads, queries, d), (N, heads, L, d) twice -> (N, heads, queries, d), by PyTorch's own where that pays."""
    if _FUSED and not (q.dtype == torch.bfloat16 and q.device.type == 'cpu'):      # whose backward takes thrice as long
        return F.scaled_dot_product_attention(q, k, v)
    return ((q * int(q.shape[-1]) ** -.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v


_FUSED = hasattr(F, 'scaled_dot_product_attention')


class Mixup:
    """timm's mixup and cutmix, draw for draw; up to 0.4.12 timm makes their targets on a GPU alone.

    Args:
        mixup_alpha, cutmix_alpha: of the beta distributions; 0: off.
        cutmix_minmax: bounds of cutmix's side as shares of the image, instead of an alpha.
        mode: what shares one factor: 'batch', 'pair' or 'elem'.
    """

    def __init__(self, mixup_alpha=0., cutmix_alpha=0., cutmix_minmax=None, prob=1., switch_prob=.5, mode='batch',
                 label_smoothing=.1, num_classes=1000):
        self.mixup_alpha, self.cutmix_alpha = mixup_alpha, 1. if cutmix_minmax else cutmix_alpha
        self.cutmix_minmax, self.mix_prob, self.switch_prob, self.mode = cutmix_minmax, prob, switch_prob, mode
        self.label_smoothing, self.num_classes = label_smoothing, num_classes

    def __call__(self, images, labels):
        """Mix each image with its opposite from the end of the batch: (N, C, H, W) in place, (N,) -> (N, classes)."""
        count, opposite = len(images), images.flip(0)
        if self.mode == 'batch':
            factor = self._mix(images, opposite, *self._draw())
        else:
            parts = ([slice(i, count - i, count - 1 - 2 * i) for i in range(count // 2)] if self.mode == 'pair' else
                     [slice(i, i + 1) for i in range(count)])
            factors, cut = self._draw_each(len(parts))
            for i, part in enumerate(parts):
                factors[i] = self._mix(images[part], opposite[part], factors[i], cut[i])
            factors = np.concatenate([factors, factors[::-1]]) if self.mode == 'pair' else factors
            factor = torch.tensor(factors, device=images.device, dtype=images.dtype)[:, None]
        where = {'device': labels.device} if accepts(mixup_target, 'device') else {}
        return images, mixup_target(labels, self.num_classes, factor, self.label_smoothing, **where)

    def _draw(self):
        """(factor, whether to cut) for a batch."""
        if np.random.rand() >= self.mix_prob:
            return 1., False
        cut = self.cutmix_alpha > 0 and (not self.mixup_alpha > 0 or np.random.rand() < self.switch_prob)
        alpha = self.cutmix_alpha if cut else self.mixup_alpha
        return float(np.random.beta(alpha, alpha)), cut

    def _draw_each(self, count):
        """The same for `count` images or pairs, as arrays."""
        alphas = [alpha for alpha in (self.cutmix_alpha, self.mixup_alpha) if alpha > 0]
        cut = (np.random.rand(count) < self.switch_prob if len(alphas) == 2 else
               np.full(count, self.cutmix_alpha > 0))
        factors = [np.random.beta(alpha, alpha, size=count) for alpha in alphas]
        mixed = np.where(cut, factors[0], factors[-1]).astype(np.float32)
        return np.where(np.random.rand(count) < self.mix_prob, mixed, np.float32(1)), cut

    def _mix(self, images, others, factor, cut):
        """Mix in place; returns the share of the pixels, or of their brightness, that stayed."""
        if factor == 1:
            return factor
        if cut:
            box, factor = cutmix_bbox_and_lam(images.shape, factor, ratio_minmax=self.cutmix_minmax)
            images[..., box[0]:box[1], box[2]:box[3]] = others[..., box[0]:box[1], box[2]:box[3]]
        else:
            images.mul_(float(factor)).add_(others * (1 - float(factor)))
        return factor
