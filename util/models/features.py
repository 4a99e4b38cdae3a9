"""Features of unmasked images, from the encoder of a masked autoencoder or of a classifier.

Shapes: N images, C channels, L patches, D width.
"""
import torch
from torch import Tensor, nn


def last_tokens(model: nn.Module, imgs: Tensor) -> Tensor:
    """(N, C, H, W), normalised -> tokens (N, 1 + L, D) after the last block; the class token is first."""
    x = model.patch_embed(imgs)
    x = torch.cat([model.cls_token.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1) + model.pos_embed
    for block in model.blocks:
        x = model.run_block(block, x)
    return x


def pooled(model: nn.Module, imgs: Tensor, pool: str = 'mean') -> Tensor:
    """(N, C, H, W), normalised -> features (N, D) after the model's final norm.

    Args:
        pool: 'mean' of the patch tokens, or 'cls' for the class token.
    """
    return pool_tokens(model, last_tokens(model, imgs), pool)


def pool_tokens(model: nn.Module, tokens: Tensor, pool: str = 'mean') -> Tensor:
    """Tokens (N, 1 + L, D) of the last block -> features (N, D) after the model's final norm."""
    if hasattr(model, 'fc_norm'):           # a classifier with global pooling normalises after it
        return model.fc_norm(tokens[:, 1:].mean(dim=1) if pool == 'mean' else tokens[:, 0])
    tokens = model.norm(tokens)
    return tokens[:, 1:].mean(dim=1) if pool == 'mean' else tokens[:, 0]
