"""Position embeddings: the fixed 2-D sine-cosine table of MAE, and interpolation to another grid."""
from typing import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def sincos_2d(dim: int, grid_size: Sequence[int]) -> Tensor:
    """2-D sine-cosine position table, with a zero row for the class token first (arXiv:2111.06377, appendix A.1).

    Args:
        dim: width D, a multiple of 4.
        grid_size: (rows, columns) of patches.
    Returns:
        float32 tensor (1, 1 + rows * columns, D). The first half of D encodes the column, the second the row.
    """
    rows, columns = grid_size
    row = torch.arange(rows, dtype=torch.float64).repeat_interleave(columns)
    column = torch.arange(columns, dtype=torch.float64).repeat(rows)
    table = torch.cat([_sincos_1d(dim // 2, column), _sincos_1d(dim // 2, row)], dim=1).float()
    return torch.cat([torch.zeros(1, dim), table])[None]


def _sincos_1d(dim: int, positions: Tensor) -> Tensor:
    """(M,) positions -> (M, dim): sines of dim / 2 frequencies from 1 to 1 / 10000, then their cosines."""
    frequencies = 10000. ** -(torch.arange(dim // 2, dtype=torch.float64) / (dim / 2.))
    angles = positions[:, None] * frequencies[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def resize_positions(table: Tensor, old_grid: Sequence[int], new_grid: Sequence[int]) -> Tensor:
    """Interpolate a table (1, 1 + old patches, D) bicubically to another grid; the class row is unchanged.

    Args:
        old_grid, new_grid: (rows, columns) of patches.
    Returns:
        (1, 1 + new patches, D)
    """
    class_row, patches = table[:, :1], table[:, 1:]
    image = patches.reshape(1, old_grid[0], old_grid[1], -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=tuple(new_grid), mode='bicubic', align_corners=False)
    return torch.cat([class_row, image.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
