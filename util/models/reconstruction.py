"""What a masked autoencoder makes of images: masked, predicted, and predicted patches among the original ones."""
from collections import namedtuple

import torch

# (N, C, H, W) each, normalised. Hidden pixels of `masked` are 0; `predicted` is the model's work alone, visible patches
# too; in `pasted` these are the original ones.
Reconstruction = namedtuple('Reconstruction', 'masked predicted pasted')


@torch.no_grad()
def reconstruct(model, imgs, mask_ratio, seed=0):
    """The Reconstruction of images (N, C, H, W), normalised.

    A model trained with norm_pix_loss predicts patches without their mean and contrast; these are then taken from
    the original patches.
    """
    generator = torch.Generator()
    generator.manual_seed(seed)
    noise = torch.rand(len(imgs), model.grid_size[0] * model.grid_size[1], generator=generator)
    _, pred, mask = model(imgs, mask_ratio, noise.to(imgs.device))
    patches, hidden = model.patchify(imgs), mask[..., None]
    pred = pred.to(patches.dtype)           # half precision has too few digits for the product
    if model.norm_pix_loss:
        mean, std = patch_statistics(patches)
        pred = pred * std + mean
    return Reconstruction(*map(model.unpatchify, (patches * (1 - hidden), pred,
                                                  pred * hidden + patches * (1 - hidden))))


def patch_statistics(patches):
    """Mean and standard deviation (unbiased, plus 1e-6 on the variance) of each patch: two (N, L, 1)."""
    return patches.mean(dim=-1, keepdim=True), (patches.var(dim=-1, keepdim=True) + 1.e-6).sqrt()
