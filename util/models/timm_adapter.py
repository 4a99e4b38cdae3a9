"""Adapter for timm 0.4.5 to 1.0.x: the only module that imports timm in training."""
import warnings
from typing import Any, Callable, List, Optional, Sequence, Tuple

import numpy as np
import torch
from PIL import Image
from timm import data as timm_data
from timm.data import auto_augment
from timm.data.mixup import cutmix_bbox_and_lam, mixup_target
from timm.data.random_erasing import RandomErasing
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models.vision_transformer import Block, PatchEmbed
from torch import Tensor, nn
from torch.nn import functional as F

from util.compat import accepts

try:
    from timm.layers import trunc_normal_
except ImportError:
    from timm.models.layers import trunc_normal_

__all__ = ['LabelSmoothingCrossEntropy', 'Mixup', 'PatchEmbed', 'RandomErasing', 'SoftTargetCrossEntropy',
           'TransformerBlock', 'color_augmentation', 'trunc_normal_']

# timm 0.4.5 passes deprecated arguments to torchvision: every DataLoader worker would warn.
warnings.filterwarnings('ignore', 'Argument interpolation should be of type InterpolationMode')
warnings.filterwarnings('ignore', 'To copy construct from a tensor', module='torchvision')


def color_augmentation(policy: Optional[str], **options: Any) -> List[Callable]:
    """AutoAugment, RandAugment or AugMix of timm.data.create_transform, or color jitter if `policy` is None."""
    steps = timm_data.create_transform(is_training=True, separate=True, auto_augment=policy, **options)[1].transforms
    for step in steps:
        for operation in [*getattr(step, 'ops', ()), *(op for ops in getattr(step, 'policy', ()) for op in ops)]:
            if operation.aug_fn is auto_augment.posterize:
                operation.aug_fn = posterize
    return steps


def posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keep the highest `bits` bits of each channel; 0 bits, which Pillow 13 rejects, give a black image."""
    return auto_augment.posterize(image, bits) if bits >= 1 else Image.new(image.mode, image.size)


class TransformerBlock(Block):
    """timm's pre-norm block with state_dict keys that are the same in all releases; can output fewer tokens."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, norm_layer: Callable, drop_path: float = 0.,
                 qkv_bias: bool = True):
        super().__init__(dim=dim, num_heads=num_heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, drop_path=drop_path,
                         norm_layer=norm_layer)
        self.attn = SelfAttention(self.attn)

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """(N, L, D) -> (N, L - first, D): tokens from index `first` on, which attend to all tokens."""
        drop_path1 = self.drop_path1 if hasattr(self, 'drop_path1') else self.drop_path
        drop_path2 = self.drop_path2 if hasattr(self, 'drop_path2') else self.drop_path
        x = x[:, first:] + drop_path1(self.attn(self.norm1(x), first))
        return x + drop_path2(self.mlp(self.norm2(x)))


class SelfAttention(nn.Module):
    """Softmax self-attention with the layers of timm's attention module."""

    def __init__(self, layers: nn.Module):
        super().__init__()
        self.num_heads, self.qkv, self.proj = layers.num_heads, layers.qkv, layers.proj

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """(N, L, D) -> (N, L - first, D)."""
        _, length, dim = x.shape        # reshape with -1 for N: exported graphs need a dynamic batch size
        qkv = self.qkv(x).reshape(-1, length, 3, self.num_heads, dim // self.num_heads).permute(2, 0, 3, 1, 4)
        x = attention(qkv[0, :, :, first:], qkv[1], qkv[2])
        return self.proj(x.transpose(1, 2).reshape(-1, length - first, dim))


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(N, heads, queries, d), (N, heads, L, d) twice -> (N, heads, queries, d); fused where that is faster."""
    if _FUSED and not (q.dtype == torch.bfloat16 and q.device.type == 'cpu'):      # its backward pass is 3x slower
        return F.scaled_dot_product_attention(q, k, v)
    return ((q * int(q.shape[-1]) ** -.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v


_FUSED = hasattr(F, 'scaled_dot_product_attention')


class Mixup:
    """Mixup and CutMix with the random draws of timm, whose own class needs a GPU up to release 0.4.12.

    Args:
        mixup_alpha, cutmix_alpha: parameters of the beta distributions; 0: off.
        cutmix_minmax: bounds of the CutMix side as fractions of the image, instead of cutmix_alpha.
        mode: unit with a common mixing factor: 'batch', 'pair' or 'elem'.
    """

    def __init__(self, mixup_alpha: float = 0., cutmix_alpha: float = 0.,
                 cutmix_minmax: Optional[Sequence[float]] = None, prob: float = 1., switch_prob: float = .5,
                 mode: str = 'batch', label_smoothing: float = .1, num_classes: int = 1000):
        self.mixup_alpha, self.cutmix_alpha = mixup_alpha, 1. if cutmix_minmax else cutmix_alpha
        self.cutmix_minmax, self.mix_prob, self.switch_prob, self.mode = cutmix_minmax, prob, switch_prob, mode
        self.label_smoothing, self.num_classes = label_smoothing, num_classes

    def __call__(self, images: Tensor, labels: Tensor) -> Tuple[Tensor, Tensor]:
        """Mix image i with image N - 1 - i: (N, C, H, W) in place, labels (N,) -> (N, classes)."""
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

    def _draw(self) -> Tuple[float, bool]:
        """(mixing factor, whether to use CutMix) for a batch."""
        if np.random.rand() >= self.mix_prob:
            return 1., False
        cut = self.cutmix_alpha > 0 and (not self.mixup_alpha > 0 or np.random.rand() < self.switch_prob)
        alpha = self.cutmix_alpha if cut else self.mixup_alpha
        return float(np.random.beta(alpha, alpha)), cut

    def _draw_each(self, count: int) -> Tuple[np.ndarray, np.ndarray]:
        """The same for each of `count` images or pairs."""
        alphas = [alpha for alpha in (self.cutmix_alpha, self.mixup_alpha) if alpha > 0]
        cut = (np.random.rand(count) < self.switch_prob if len(alphas) == 2 else
               np.full(count, self.cutmix_alpha > 0))
        factors = [np.random.beta(alpha, alpha, size=count) for alpha in alphas]
        mixed = np.where(cut, factors[0], factors[-1]).astype(np.float32)
        return np.where(np.random.rand(count) < self.mix_prob, mixed, np.float32(1)), cut

    def _mix(self, images: Tensor, others: Tensor, factor: float, cut: bool) -> float:
        """Mix in place; returns the factor, which CutMix corrects to the actual area."""
        if factor == 1:
            return factor
        if cut:
            box, factor = cutmix_bbox_and_lam(images.shape, factor, ratio_minmax=self.cutmix_minmax)
            images[..., box[0]:box[1], box[2]:box[3]] = others[..., box[0]:box[1], box[2]:box[3]]
        else:
            images.mul_(float(factor)).add_(others * (1 - float(factor)))
        return factor
