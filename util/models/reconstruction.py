"""Reconstruction of masked images by a masked autoencoder."""
from typing import Tuple

import torch
from torch import Tensor, nn


@torch.no_grad()
def reconstruct(model: nn.Module, imgs: Tensor, mask_ratio: float, seed: int = 0) -> Tuple[Tensor, Tensor, Tensor]:
    """Mask and reconstruct normalised images (N, C, H, W).

    A model trained with norm_pix_loss predicts normalised patches; mean and deviation are those of the originals.
    Returns:
        the images with hidden patches 0, with all patches predicted, and with only the hidden patches predicted.
    """
    generator = torch.Generator()
    generator.manual_seed(seed)
    noise = torch.rand(len(imgs), model.grid_size[0] * model.grid_size[1], generator=generator)
    _, pred, mask = model(imgs, mask_ratio, noise.to(imgs.device))
    patches, hidden = model.patchify(imgs), mask[..., None]
    pred = pred.to(patches.dtype)           # the product below needs more digits than half precision
    if model.norm_pix_loss:
        mean, std = patch_statistics(patches)
        pred = pred * std + mean
    masked = patches * (1 - hidden)
    return tuple(map(model.unpatchify, (masked, pred, pred * hidden + masked)))


def patch_statistics(patches: Tensor) -> Tuple[Tensor, Tensor]:
    """Mean and standard deviation (unbiased, plus 1e-6 on the variance) of each patch: two (N, L, 1)."""
    return patches.mean(dim=-1, keepdim=True), (patches.var(dim=-1, keepdim=True) + 1.e-6).sqrt()
