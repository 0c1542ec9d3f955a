"""What becomes of a checkpoint's tensors: the transforms of the weight tables.

PyTorch is loaded by what computes: it takes seconds, and whoever runs a bundle's engine reads the
tables, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from convert.checkpoint.positions import interpolate_grid, resample_grid

if TYPE_CHECKING:
    from torch import Tensor


def same(tensor: Tensor) -> Tensor:
    """Leaves a tensor as it is."""
    return tensor


def stack_rows(*tensors: Tensor) -> Tensor:
    """Stacks linears (N, K) with the same inputs into one, in the order given."""
    import torch

    return torch.cat(tensors)


def flatten_patches(weight: Tensor) -> Tensor:
    """Turns a patch convolution (D, 3, p, p) into a linear (D, 3 * p * p) on (c, y, x)."""
    return weight.flatten(1)


def transpose(weight: Tensor) -> Tensor:
    """Turns the right factor of `x @ weight` into the weight (N, K) of a linear."""
    return weight.T.contiguous()


def third(packed: Tensor, *, index: int) -> Tensor:
    """Returns queries' (0), keys' (1) or values' (2) part of a packed input projection."""
    return packed.chunk(3)[index]


def half_inputs(packed: Tensor, *, index: int) -> Tensor:
    """Returns what the keys' matrix (N, K) does with its first (0) or second (1) inputs: (N, K/2).

    The first half of a sine table's width encodes the column, the second the row.
    """
    return third(packed, index=1).chunk(2, dim=1)[index].contiguous()


def trained_positions(positions: Tensor) -> Tensor:
    """Returns the vision encoder's positions as they are stored: (n, D) from (1, n, D)."""
    return positions.squeeze(0)


def resample_positions(positions: Tensor, *, grid: int) -> Tensor:
    """Resamples the vision encoder's positions (1, n, D) to (grid * grid, D), float32."""
    return resample_grid(positions, grid, grid).squeeze(0)


def project_queries(
    query: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    positions: Tensor,
    in_weight: Tensor,
    in_bias: Tensor,
    *,
    eps: float,
) -> Tensor:
    """Computes the resampler's projected queries (Q, E): they do not depend on the picture.

    In float64, then rounded to float32.
    """
    import torch.nn.functional as F

    width = query.shape[-1]
    norm = F.layer_norm(query.double(), (width,), norm_weight.double(), norm_bias.double(), eps)
    weight, bias = third(in_weight, index=0), third(in_bias, index=0)
    return F.linear(norm + positions.double(), weight.double(), bias.double()).float()


def project_key_positions(
    positions: Tensor, in_weight: Tensor, in_bias: Tensor, *, grid: int
) -> Tensor:
    """Computes what positions and bias add to the resampler's keys: (P, E) from (Q, E).

    Interpolated in float32 as upstream does, multiplied in float64, rounded to float32.
    """
    import torch.nn.functional as F

    weight, bias = third(in_weight, index=1), third(in_bias, index=1)
    spread = interpolate_grid(positions, grid, grid).double()
    return F.linear(spread, weight.double(), bias.double()).float()
