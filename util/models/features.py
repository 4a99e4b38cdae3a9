"""What the encoder of a model makes of whole images: a masked autoencoder's and a classifier's alike.

Shapes: N images, C channels, L patches, D width.
"""
from collections import deque

import torch


def block_outputs(model, imgs):
    """(N, C, H, W), normalised -> tokens (N, 1 + L, D) after each block, one after the other; the class token first."""
    x = model.patch_embed(imgs)
    x = torch.cat([model.cls_token.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1) + model.pos_embed
    for block in model.blocks:
        x = model.run_block(block, x)
        yield x


def pooled(model, imgs, pool='mean'):
    """(N, C, H, W), normalised -> features (N, D), with the model's own last norm.

    Args:
        pool: 'mean' of the patch tokens, or 'cls', the class token.
    """
    last, = deque(block_outputs(model, imgs), maxlen=1)
    return pool_tokens(model, last, pool)


def pool_tokens(model, tokens, pool='mean'):
    """Tokens (N, 1 + L, D) of the last block -> features (N, D), normalised as the model does it."""
    if hasattr(model, 'fc_norm'):           # a classifier of the mean normalises after it
        return model.fc_norm(tokens[:, 1:].mean(dim=1) if pool == 'mean' else tokens[:, 0])
    tokens = model.norm(tokens)
    return tokens[:, 1:].mean(dim=1) if pool == 'mean' else tokens[:, 0]
