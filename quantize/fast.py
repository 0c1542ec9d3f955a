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
from quantize.kernels import search_scales
from quantize.methods import Method
from quantize.schemes import Array, GroupScheme, check_groups

CHUNK_VALUES = 1 << 18  # of `row_chunks`: a run's float32 temporaries fit the second-level cache


def quantize_weight(
    weight: Array, scheme: GroupScheme, method: Method, *, name: str
) -> tuple[Array, Array]:
    """Quantizes rows (N, K) float16 without calibration.

    Returns:
        q (N, K) uint8 codes; scale (N, K/G) float16.
    """
    function = search_groups_fast if method.search else quantize_groups_fast
    return function(weight, scheme, name=name)


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


def nearest_codes(values: Tensor, scale: Tensor, scheme: GroupScheme) -> Tensor:
    """Returns the nearest codes less the zero point, float32; 0 where the scale is 0."""
    divisor = torch.where(scale == 0, torch.inf, scale)
    lowest, highest = -scheme.zero_point, scheme.max_code - scheme.zero_point
    return (values / divisor).round_().clamp_(lowest, highest)


def _split(weight: Array, scheme: GroupScheme, name: str) -> Tensor:
    check_groups(weight, scheme, name)
    return torch.from_numpy(weight).float().view(len(weight), -1, scheme.group_size)
