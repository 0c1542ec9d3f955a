"""Position embeddings resampled to another grid, as the original model does at load."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from quantize.errors import ShapeError


def square_side(count: int) -> int:
    """Returns the side of a square grid of `count` positions, or raises ShapeError."""
    side = math.isqrt(count)
    if side * side != count:
        raise ShapeError(f"{count} positions do not form a square grid")
    return side


def resample_grid(positions: Tensor, grid: int) -> Tensor:
    """Resamples the vision encoder's positions (1, P, D) to (1, grid * grid, D), float32.

    Bicubic with antialiasing, in float32. Source: timm 0.9.10 `resample_abs_pos_embed`.
    """
    return _resize(positions.float().squeeze(0), grid, antialias=True).unsqueeze(0)


def interpolate_grid(positions: Tensor, grid: int) -> Tensor:
    """Spreads the resampler's positions (Q, D) over the keys' grid: (grid * grid, D), float32.

    Bicubic without antialiasing, in float32. Source: MiniCPM-V 1.0 `get_abs_pos`.
    """
    return _resize(positions.float(), grid, antialias=False)


def _resize(positions: Tensor, grid: int, *, antialias: bool) -> Tensor:
    side = square_side(positions.shape[0])
    if side == grid:
        return positions
    plane = positions.view(1, side, side, -1).permute(0, 3, 1, 2)
    plane = F.interpolate(
        plane, size=(grid, grid), mode="bicubic", align_corners=False, antialias=antialias
    )
    return plane.permute(0, 2, 3, 1).reshape(grid * grid, -1).to(torch.float32)
