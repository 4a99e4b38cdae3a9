"""Masked autoencoder with a Vision Transformer backbone (He et al., arXiv:2111.06377).

Shapes: N images, C channels, L patches, K kept patches, p patch side, D encoder width, E decoder width.
"""
from functools import partial
from typing import Any, Callable, Optional, Tuple, Union

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from util.config.input_flags import InputSize, sides
from util.model_sizes import MASK_RATIO, PRETRAIN_MODELS, Size, predicted_patches, visible_patches
from util.models.activation_checkpointing import directly
from util.models.positions import sincos_2d
from util.models.reconstruction import patch_statistics
from util.models.timm_adapter import PatchEmbed, TransformerBlock


class MaskedAutoencoderViT(nn.Module):
    """Masked autoencoder: encodes the visible patches of an image and predicts the pixels of the hidden ones.

    Args:
        img_size: input side in pixels, or (height, width).
        patch_size: patch side in pixels; divides img_size.
        norm_pix_loss: predict pixels normalised by mean and variance of their patch (section 4.1).
        predict_ratio: share of the hidden patches that a training step predicts, a random subset that is drawn anew in
            each step (partial reconstruction, CrossMAE, arXiv:2401.14391); the others stay out of decoder and loss.
    """

    def __init__(self, img_size: InputSize = 224, patch_size: int = 16, in_chans: int = 3, embed_dim: int = 1024,
                 depth: int = 24, num_heads: int = 16, decoder_embed_dim: int = 512, decoder_depth: int = 8,
                 decoder_num_heads: int = 16, mlp_ratio: float = 4., norm_layer: Callable = nn.LayerNorm,
                 norm_pix_loss: bool = False, predict_ratio: float = 1.):
        super().__init__()
        self.patch_size, self.in_chans = patch_size, in_chans
        self.norm_pix_loss, self.predict_ratio = norm_pix_loss, predict_ratio
        self.run_block = directly     # or util.models.activation_checkpointing.checkpointed
        height, width = img_size = sides(img_size)
        self.grid_size = (height // patch_size, width // patch_size)

        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(sincos_2d(embed_dim, self.grid_size), requires_grad=False)
        self.blocks = nn.ModuleList(TransformerBlock(embed_dim, num_heads, mlp_ratio, norm_layer) for _ in range(depth))
        self.norm = norm_layer(embed_dim)

        self.decoder_embed = nn.Linear(embed_dim, decoder_embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_embed_dim))
        self.decoder_pos_embed = nn.Parameter(sincos_2d(decoder_embed_dim, self.grid_size), requires_grad=False)
        self.decoder_blocks = nn.ModuleList([TransformerBlock(decoder_embed_dim, decoder_num_heads, mlp_ratio,
                                                               norm_layer) for _ in range(decoder_depth)])
        self.decoder_norm = norm_layer(decoder_embed_dim)
        self.decoder_pred = nn.Linear(decoder_embed_dim, patch_size ** 2 * in_chans)
        self.initialize_weights()

    def initialize_weights(self) -> None:
        """Xavier-uniform for linear layers and the patch embedding (as a linear layer); normal(0.02) for the tokens."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.data.flatten(1))
        nn.init.normal_(self.cls_token, std=.02)
        nn.init.normal_(self.mask_token, std=.02)

    def forward(self, imgs: Tensor, mask_ratio: float = MASK_RATIO, noise: Optional[Tensor] = None,
                loss_only: bool = False) -> Union[Tensor, Tuple[Tensor, Tensor, Tensor]]:
        """Mask random patches (section 3, appendix A.1), encode the visible ones, predict the hidden ones.

        Args:
            imgs: (N, C, H, W), normalised.
            mask_ratio: fraction of patches to hide.
            noise: (N, L): the patches with the smallest noise stay visible; default: uniform.
            loss_only: compute and return only the loss, as in training: over `predict_ratio` of the hidden patches.
        Returns:
            loss: scalar, mean squared error over hidden patches.
            pred: (N, L, p * p * C), predicted pixels (normalised per patch with norm_pix_loss).
            mask: (N, L), 1 for hidden patches.
        """
        if noise is None:
            noise = torch.rand(imgs.shape[0], self.pos_embed.shape[1] - 1, device=imgs.device)
        ids = noise.sort(dim=1)[1]
        keep = visible_patches(ids.shape[1], mask_ratio)
        patches = self.patchify(imgs)
        latent = self.encode_visible(patches, ids[:, :keep])
        if loss_only:
            ids = ids[:, :keep + predicted_patches(ids.shape[1] - keep, self.predict_ratio)]
            return self.loss_of_hidden(patches, self.decode_shuffled(latent, ids, hidden_only=True), ids[:, keep:])
        pred = self.decode_all(latent, ids)
        loss = self.loss_of_hidden(patches, pred[:, keep:], ids[:, keep:])
        ids_restore = ids.sort(dim=1)[1]
        return loss, gather_tokens(pred, ids_restore), (ids_restore >= keep).float()

    def encode_visible(self, patches: Tensor, ids_keep: Tensor) -> Tensor:
        """Pixels (N, L, p * p * C) and indices of visible patches (N, K) -> latent (N, 1 + K, D)."""
        weight = self.patch_embed.proj.weight.permute(0, 2, 3, 1).flatten(1)             # (D, p * p * C)
        x = F.linear(gather_tokens(patches, ids_keep), weight, self.patch_embed.proj.bias)
        x = x + gather_tokens(self.pos_embed[:, 1:], ids_keep)

        cls_token = (self.cls_token + self.pos_embed[:, :1]).expand(ids_keep.shape[0], -1, -1)
        x = torch.cat([cls_token.to(x.dtype), x], dim=1)
        for block in self.blocks:
            x = self.run_block(block, x)
        return self.norm(x)

    def decode_all(self, latent: Tensor, ids: Tensor) -> Tensor:
        """Like decode_shuffled for all patches: the hidden ones in groups, of as many as a training step predicts."""
        visible, length = latent.shape[1] - 1, ids.shape[1]
        size, parts = predicted_patches(length - visible, self.predict_ratio), []
        for first in range(visible, max(length, visible + 1), size):
            start = max(visible, min(first, length - size))         # the last group is filled with patches before it
            pred = self.decode_shuffled(latent, torch.cat([ids[:, :visible], ids[:, start:start + size]], dim=1))
            parts.append(pred[:, visible + first - start:] if parts else pred)
        return torch.cat(parts, dim=1)

    def decode_shuffled(self, latent: Tensor, ids: Tensor, hidden_only: bool = False) -> Tensor:
        """Latent (N, 1 + K, D) -> predicted pixels (N, M, p * p * C) of the patches `ids` (N, M), visible ones first.

        The order is not restored, since attention is permutation-equivariant.
        Args:
            hidden_only: the last block and the prediction skip the visible patches: (N, M - K, p * p * C).
        """
        x = self.decoder_embed(latent)                                                   # (N, 1 + K, E)
        visible = x.shape[1]
        hidden = self.mask_token.to(x.dtype).expand(ids.shape[0], ids.shape[1] + 1 - visible, -1)
        cls_position = self.decoder_pos_embed[:, :1].expand(ids.shape[0], -1, -1)
        positions = gather_tokens(self.decoder_pos_embed[:, 1:], ids)
        x = torch.cat([x, hidden], dim=1) + torch.cat([cls_position, positions], dim=1)
        for block in self.decoder_blocks[:-1]:
            x = self.run_block(block, x)
        x = self.run_block(self.decoder_blocks[-1], x, visible if hidden_only else 1)
        return self.decoder_pred(self.decoder_norm(x))

    def loss_of_hidden(self, patches: Tensor, pred: Tensor, ids_hidden: Tensor) -> Tensor:
        """Mean squared error in fp32 between pred (N, L - K, p * p * C) and the hidden patches, by index (N, L - K)."""
        return F.mse_loss(pred.float(), self._target(gather_tokens(patches, ids_hidden)))

    # The steps of the published class, for code written for it. `forward` computes the same with less work.

    def random_masking(self, x: Tensor, mask_ratio: float) -> Tuple[Tensor, Tensor, Tensor]:
        """Keep random tokens of x (N, L, D): (kept tokens (N, K, D), mask (N, L), ids_restore (N, L)).

        mask: 1 for hidden tokens; ids_restore: place of each token in the order that has the kept ones first.
        """
        ids = torch.rand(*x.shape[:2], device=x.device).sort(dim=1)[1]
        keep, ids_restore = visible_patches(x.shape[1], mask_ratio), ids.sort(dim=1)[1]
        return gather_tokens(x, ids[:, :keep]), (ids_restore >= keep).float(), ids_restore

    def forward_encoder(self, imgs: Tensor, mask_ratio: float) -> Tuple[Tensor, Tensor, Tensor]:
        """(N, C, H, W) -> (latent (N, 1 + K, D), mask, ids_restore), the last two as of random_masking.

        The patches of the latent are in shuffled order, also for mask_ratio 0; the class token is first.
        """
        patches = self.patchify(imgs)
        visible, mask, ids_restore = self.random_masking(patches, mask_ratio)
        ids = ids_restore.sort(dim=1)[1]
        return self.encode_visible(patches, ids[:, :visible.shape[1]]), mask, ids_restore

    def forward_decoder(self, latent: Tensor, ids_restore: Tensor) -> Tensor:
        """Latent (N, 1 + K, D) -> predicted pixels (N, L, p * p * C), patches in the order of the image."""
        return gather_tokens(self.decode_all(latent, ids_restore.sort(dim=1)[1]), ids_restore)

    def forward_loss(self, imgs: Tensor, pred: Tensor, mask: Tensor) -> Tensor:
        """Mean squared error in fp32 between pred (N, L, p * p * C) and imgs, over patches of mask (N, L) 1."""
        errors = (pred.float() - self._target(self.patchify(imgs))) ** 2
        return (errors.mean(dim=-1) * mask).sum() / mask.sum()

    def _target(self, patches):
        """What to predict of patches (N, any number, p * p * C), in fp32."""
        patches = patches.float()
        if self.norm_pix_loss:
            mean, std = patch_statistics(patches)
            patches = (patches - mean) / std
        return patches

    def patchify(self, imgs: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, L, p * p * C)."""
        p, (rows, columns) = self.patch_size, self.grid_size
        x = imgs.reshape(-1, self.in_chans, rows, p, columns, p)
        return x.permute(0, 2, 4, 3, 5, 1).reshape(-1, rows * columns, p * p * self.in_chans)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """(N, L, p * p * C) -> (N, C, H, W)."""
        p, (rows, columns) = self.patch_size, self.grid_size
        x = patches.reshape(patches.shape[0], rows, columns, p, p, self.in_chans)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(patches.shape[0], self.in_chans, rows * p, columns * p)


def gather_tokens(x: Tensor, ids: Tensor) -> Tensor:
    """x (N or 1, L, D), ids (N, K) -> (N, K, D)."""
    if x.requires_grad:         # else by whole rows, without an index for each element
        return torch.gather(x.expand(len(ids), -1, -1), 1, ids[..., None].expand(-1, -1, x.shape[-1]))
    first = torch.arange(0, x.shape[0] * x.shape[1], x.shape[1], device=ids.device)[:, None]
    return x.flatten(0, 1).index_select(0, (ids + first).flatten()).view(*ids.shape, x.shape[-1])


def _mae(size: Size, **options: Any) -> MaskedAutoencoderViT:
    """Masked autoencoder of a size; `options` override it."""
    decoder = dict(zip(('decoder_embed_dim', 'decoder_depth', 'decoder_num_heads'), size.decoder))
    return MaskedAutoencoderViT(**{**size.encoder_options, **decoder, 'norm_layer': partial(nn.LayerNorm, eps=1e-6),
                                   **options})


# mae_vit_base_patch16() and the other constructors, one for each name in util.model_sizes
globals().update({name: partial(_mae, size) for name, size in PRETRAIN_MODELS.items()})
