"""Vision Transformer classifier (Dosovitskiy et al., arXiv:2010.11929), as fine-tuned in MAE.

Shapes: N images, C channels, L patches, D width.
"""
from functools import partial
from typing import Any, Callable, Set

import torch
from torch import Tensor, nn

from util.config.input_flags import InputSize, sides
from util.model_sizes import FINETUNE_MODELS, Size
from util.models.activation_checkpointing import directly
from util.models.features import pooled
from util.models.timm_adapter import PatchEmbed, TransformerBlock, trunc_normal_


class VisionTransformer(nn.Module):
    """ViT with a linear head on the mean of the patch tokens (global_pool) or on the class token.

    Args:
        global_pool: average the patch tokens, then normalise (fc_norm); else normalise, then take the class token.
        img_size: input side in pixels, or (height, width).
        drop_path_rate: stochastic depth rate of the last block, increasing linearly from 0 (arXiv:1603.09382).
        qkv_bias: bias of queries, keys and values, as in all published weights.
    """

    def __init__(self, global_pool: bool = False, img_size: InputSize = 224, patch_size: int = 16, in_chans: int = 3,
                 num_classes: int = 1000, embed_dim: int = 768, depth: int = 12, num_heads: int = 12,
                 mlp_ratio: float = 4., norm_layer: Callable = nn.LayerNorm, drop_path_rate: float = 0.,
                 qkv_bias: bool = True):
        super().__init__()
        self.global_pool = global_pool
        self.run_block = directly     # or util.models.activation_checkpointing.checkpointed
        height, width = img_size = sides(img_size)
        self.grid_size = (height // patch_size, width // patch_size)

        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid_size[0] * self.grid_size[1], embed_dim))
        rates = [drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList([TransformerBlock(embed_dim, num_heads, mlp_ratio, norm_layer, rate, qkv_bias)
                                     for rate in rates])
        if not global_pool:
            self.norm = norm_layer(embed_dim)
        self.head = nn.Linear(embed_dim, num_classes)
        if global_pool:     # after the head, as in the published class: optimizer state depends on this order
            self.fc_norm = norm_layer(embed_dim)

        trunc_normal_(self.pos_embed, std=.02)
        trunc_normal_(self.cls_token, std=.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, imgs: Tensor) -> Tensor:
        """(N, C, H, W) -> logits (N, classes)."""
        return self.head(self.forward_features(imgs))

    def forward_features(self, imgs: Tensor) -> Tensor:
        """(N, C, H, W) -> pooled features (N, D)."""
        return pooled(self, imgs, 'mean' if self.global_pool else 'cls')

    def no_weight_decay(self) -> Set[str]:
        """Names of parameters without weight decay, besides 1-D tensors."""
        return {'pos_embed', 'cls_token'}


def _vit(size: Size, **options: Any) -> VisionTransformer:
    """Classifier of a size; `options` override it."""
    return VisionTransformer(**{**size.encoder_options, 'norm_layer': partial(nn.LayerNorm, eps=1e-6), **options})


# vit_base_patch16() and the other constructors, one for each name in util.model_sizes
globals().update({name: partial(_vit, size) for name, size in FINETUNE_MODELS.items()})
