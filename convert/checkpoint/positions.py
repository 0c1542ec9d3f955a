"""Position embeddings resampled to another grid, as the original model does at load.

See `transforms.py` for when PyTorch is loaded.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from quantize.errors import ShapeError

if TYPE_CHECKING:
    from torch import Tensor


def square_side(count: int) -> int:
    """Returns the side of a square grid of `count` positions, or raises ShapeError."""
    side = math.isqrt(count)
    if side * side != count:
        raise ShapeError(f"{count} positions do not form a square grid")
    return side


def resample_grid(positions: Tensor, rows: int, columns: int) -> Tensor:
    """Resamples the vision encoder's positions (1, P, D) to (1, rows * columns, D), float32.

    Bicubic with antialiasing, in float32. Source: timm 0.9.10 `resample_abs_pos_embed`.
    """
    return _resize(positions.float().squeeze(0), rows, columns, antialias=True).unsqueeze(0)


def interpolate_grid(positions: Tensor, rows: int, columns: int) -> Tensor:
    """Spreads the resampler's positions (Q, D) over the keys' grid: (rows * columns, D), float32.

    Bicubic without antialiasing, in float32. Source: MiniCPM-V 1.0 `get_abs_pos`.
    """
    return _resize(positions.float(), rows, columns, antialias=False)


def sincos_grid(width: int, rows: int, columns: int) -> Tensor:
    """Makes the positions of a grid: (rows * columns, width), float32, row by row.

    The first half of the width encodes the column, the second the row; each half holds sines, then
    cosines. Computed in float64, where the original has float32. Source: MiniCPM-V 2.0
    `get_2d_sincos_pos_embed`.
    """
    import torch

    half = width // 4  # frequencies of one axis
    steps = torch.arange(half, dtype=torch.float64)
    frequencies = 10000.0 ** -(steps / half)

    def encode(count: int) -> Tensor:
        angles = torch.arange(count, dtype=torch.float64).unsqueeze(1) * frequencies
        return torch.cat((angles.sin(), angles.cos()), dim=1)

    x = encode(columns).expand(rows, -1, -1)
    y = encode(rows).unsqueeze(1).expand(-1, columns, -1)
    return torch.cat((x, y), dim=2).reshape(rows * columns, width).float()


def _resize(positions: Tensor, rows: int, columns: int, *, antialias: bool) -> Tensor:
    import torch.nn.functional as F

    side = square_side(positions.shape[0])
    if side == rows == columns:
        return positions
    plane = positions.view(1, side, side, -1).permute(0, 3, 1, 2)
    plane = F.interpolate(
        plane, size=(rows, columns), mode="bicubic", align_corners=False, antialias=antialias
    )
    return plane.permute(0, 2, 3, 1).reshape(rows * columns, -1).float()
