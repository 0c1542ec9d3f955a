"""The schemes' arithmetic in PyTorch: the same bits as the numpy references, several times faster.

PyTorch spreads each operation over its threads. Callers hand in runs of rows (see
`quantize.schemes.row_chunks`) that stay in the processor's cache.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from quantize.activations import MAX_INT8
from quantize.int8 import INT8_GROUP, check_int8
from quantize.schemes import Array, GroupScheme, check_groups
from quantize.search import DIVISORS

CHUNK_VALUES = 1 << 18  # of `row_chunks`: a run's float32 temporaries fit the second-level cache


def quantize_groups_fast(weight: Array, scheme: GroupScheme, *, name: str) -> tuple[Array, Array]:
    """Does what `quantize.schemes.quantize_groups` does."""
    groups = _split(weight, scheme, name)
    scale = (groups.abs().amax(-1) / scheme.zero_point).half()
    codes = groups.div_(scale.float().unsqueeze(-1)).half().float()
    codes = codes.add_(scheme.zero_point).half().float().round_()
    if not scale.all():  # only a scale of 0 gives infinite ratios, or NaN
        codes.nan_to_num_(0.0, scheme.max_code, 0.0)
    codes.clamp_(0, scheme.max_code)
    return codes.to(torch.uint8).view(weight.shape).numpy(), scale.numpy()


def quantize_int8_fast(weight: Array, *, name: str) -> tuple[Array, Array]:
    """Does what `quantize.int8.quantize_int8` does."""
    check_int8(weight, name)
    rows, columns = weight.shape
    values = torch.from_numpy(weight).float()
    if columns % INT8_GROUP:
        values = F.pad(values, (0, -columns % INT8_GROUP))
    groups = values.view(rows, -1, INT8_GROUP)
    scale = (groups.abs().amax(-1) / MAX_INT8).half()
    divisor = torch.where(scale == 0, torch.inf, scale.float())
    codes = groups.div_(divisor.unsqueeze(-1)).round_().clamp_(-MAX_INT8, MAX_INT8)
    return codes.to(torch.int8).view(rows, -1).numpy(), scale.numpy()


def search_groups_fast(
    weight: Array, scheme: GroupScheme, *, name: str, importance: Array | None = None
) -> tuple[Array, Array]:
    """Does what `quantize.search.search_groups` does."""
    groups = _split(weight, scheme, name)
    each = None if importance is None else torch.from_numpy(importance).view(groups.shape[1:])
    scale = search_scales(groups, scheme, each)
    codes = nearest_codes(groups, scale, scheme) + scheme.zero_point
    return codes.to(torch.uint8).view(weight.shape).numpy(), scale[..., 0].half().numpy()


def search_scales(groups: Tensor, scheme: GroupScheme, importance: Tensor | None) -> Tensor:
    """Returns the scales (..., 1) that lose least, float16 values in float32.

    Args:
        groups: (..., G) float32.
        scheme: the number format.
        importance: of each value's squared error, a shape that fits `groups`; all alike if None.
    """
    # A group's values lie along the first axis here: every operation then runs over long rows.
    values = groups.movedim(-1, 0).contiguous()
    each = None
    if importance is not None:
        outer = [1] * (groups.dim() - importance.dim())
        moved = importance.float().movedim(-1, 0)
        each = moved.reshape(len(moved), *outer, *importance.shape[:-1])
    highest, lowest = values.amax(0), values.amin(0)
    largest = torch.where(highest >= -lowest, highest, lowest)
    if scheme.max_code == 2 * scheme.zero_point:
        largest = largest.abs()
    best = torch.full_like(largest, -torch.inf)
    scale = torch.zeros_like(largest)
    for divisor in DIVISORS:
        codes = nearest_codes(values, (largest / divisor).half().float(), scheme)
        weighted = codes if each is None else each * codes
        shared = _tree_sum(weighted * values)
        power = _tree_sum(codes.mul_(weighted))
        fitted = (shared / torch.where(power > 0, power, 1.0)).half().float()
        gain = fitted * ((shared + shared) - fitted * power)
        better = gain > best
        best, scale = torch.where(better, gain, best), torch.where(better, fitted, scale)
    return scale.unsqueeze(-1)


def nearest_codes(values: Tensor, scale: Tensor, scheme: GroupScheme) -> Tensor:
    """Returns the nearest codes less the zero point, float32; 0 where the scale is 0."""
    divisor = torch.where(scale == 0, torch.inf, scale)
    lowest, highest = -scheme.zero_point, scheme.max_code - scheme.zero_point
    return (values / divisor).round_().clamp_(lowest, highest)


def _split(weight: Array, scheme: GroupScheme, name: str) -> Tensor:
    check_groups(weight, scheme, name)
    return torch.from_numpy(weight).float().view(len(weight), -1, scheme.group_size)


def _tree_sum(values: Tensor) -> Tensor:
    """Adds up the first axis, half to half, in the order of `quantize.search.tree_sum`."""
    while values.shape[0] > 1:  # `len` of a tensor takes far longer
        half = values.shape[0] // 2
        values = values[:half] + values[half:]
    return values[0]
