"""timm 0.4.5 to 1.0.x behind one interface: everything that the program takes from timm comes through here."""
import warnings

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
    if hasattr(F, 'scaled_dot_product_attention') and not hasattr(block.attn, 'fused_attn'):
        block.attn.__class__ = _FusedAttention
    return block


class _FusedAttention(Attention):
    """The Attention of a timm release older than scaled_dot_product_attention, on a torch that has it."""

    def forward(self, x):
        n, length, dim = x.shape
        qkv = self.qkv(x).reshape(n, length, 3, self.num_heads, dim // self.num_heads).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        return self.proj(x.transpose(1, 2).reshape(n, length, dim))


class Mixup(timm_data.Mixup):
    """timm's mixup and cutmix; up to 0.4.12 it makes its targets on a GPU unless told where."""

    def __call__(self, images, labels):
        mix = {'elem': self._mix_elem, 'pair': self._mix_pair}.get(self.mode, self._mix_batch)
        lam = mix(images)
        where = {'device': labels.device} if accepts(mixup_target, 'device') else {}
        return images, mixup_target(labels, self.num_classes, lam, self.label_smoothing, **where)
