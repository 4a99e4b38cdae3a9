"""Adapter for timm 0.4.5 to 1.0.x: the only module that imports timm in training."""
import warnings
from typing import Any, Callable, List, Optional

import torch
from PIL import Image
from timm import data as timm_data
from timm.data import auto_augment
from timm.data.mixup import cutmix_bbox_and_lam
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models.vision_transformer import Block, PatchEmbed
from torch import Tensor, nn
from torch.nn import functional as F

try:
    from timm.layers import trunc_normal_
except ImportError:
    from timm.models.layers import trunc_normal_

__all__ = ['LabelSmoothingCrossEntropy', 'PatchEmbed', 'SoftTargetCrossEntropy', 'TransformerBlock',
           'color_augmentation', 'cutmix_bbox_and_lam', 'trunc_normal_']

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
