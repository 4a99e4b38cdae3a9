"""timm 0.4.5 to 1.0.x behind one interface: everything that the program takes from timm comes through here."""
import warnings

import torch
from PIL import Image, ImageOps
from timm import data as timm_data
from timm.data import auto_augment
from timm.data.mixup import mixup_target
from timm.data.random_erasing import RandomErasing
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models.vision_transformer import Attention, Block, PatchEmbed
from torch.nn import functional as F

from util.features import accepts

try:
    from timm.layers import trunc_normal_
except ImportError:
    from timm.models.layers import trunc_normal_

__all__ = ['LabelSmoothingCrossEntropy', 'Mixup', 'PatchEmbed', 'RandomErasing', 'SoftTargetCrossEntropy',
           'create_transform', 'transformer_block', 'trunc_normal_']

create_transform = timm_data.create_transform
# timm 0.4.5 hands torchvision arguments in older forms, of which every loader process would warn.
warnings.filterwarnings('ignore', 'Argument interpolation should be of type InterpolationMode')
warnings.filterwarnings('ignore', 'To copy construct from a tensor', module='torchvision')


def _posterize(image, bits, **_):
    """Keep the highest `bits` bits of a channel; none makes it black, which Pillow 13 refuses to do."""
    return ImageOps.posterize(image, min(bits, 8)) if bits >= 1 else Image.new(image.mode, image.size)


auto_augment.NAME_TO_OP.update((name, _posterize) for name in auto_augment.NAME_TO_OP if name.startswith('Posterize'))


def transformer_block(dim, num_heads, mlp_ratio, norm_layer, drop_path=0.):
    """timm's pre-norm transformer block with a bias in qkv; its state_dict keys are equal in all releases."""
    block = Block(dim=dim, num_heads=num_heads, mlp_ratio=mlp_ratio, qkv_bias=True, drop_path=drop_path,
                  norm_layer=norm_layer)
    block.__class__, block.attn.__class__ = _Block, _Attention
    return block


def drops_paths(model):
    """Whether a model's blocks have stochastic depth."""
    return any(getattr(module, 'drop_prob', None) for module in model.modules())


class _Block(Block):
    """The same in all releases of timm, and able to leave out what nobody looks at afterwards."""

    def forward(self, x, first=0):
        """(N, L, D) -> (N, L - first, D): every token looks at all others, those from `first` on go further."""
        drop_path1 = self.drop_path1 if hasattr(self, 'drop_path1') else self.drop_path
        drop_path2 = self.drop_path2 if hasattr(self, 'drop_path2') else self.drop_path
        x = x[:, first:] + drop_path1(self.attn(self.norm1(x), first))
        return x + drop_path2(self.mlp(self.norm2(x)))


class _Attention(Attention):
    """Softmax attention."""

    def forward(self, x, first=0):
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


class Mixup(timm_data.Mixup):
    """timm's mixup and cutmix; up to 0.4.12 it makes its targets on a GPU unless told where."""

    def __call__(self, images, labels):
        mix = {'elem': self._mix_elem, 'pair': self._mix_pair}.get(self.mode, self._mix_batch)
        lam = mix(images)
        where = {'device': labels.device} if accepts(mixup_target, 'device') else {}
        return images, mixup_target(labels, self.num_classes, lam, self.label_smoothing, **where)
