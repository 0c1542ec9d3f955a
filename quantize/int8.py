"""Int8 weights: groups along the input dimension share a float16 scale, as in the 4-bit schemes.

A code is rint(value / scale), half to even, with scale = max|value| / 127, so codes are within
-127..127. A last group that the width does not fill is filled with zeros.
"""

from __future__ import annotations

import numpy as np

from quantize.activations import MAX_INT8
from quantize.errors import CheckpointError
from quantize.schemes import Array


def quantize_int8(weight: Array, group_size: int, *, name: str) -> tuple[Array, Array]:
    """Quantizes groups of a matrix (N, K) float16.

    Returns:
        codes (N, G * group_size) int8 and scale (N, G) float16, G = ceil(K / group_size). Where
        a group's values are too small for any scale, scale and codes are 0.

    Raises:
        CheckpointError: a value is not finite.
    """
    assert weight.dtype == np.float16 and weight.ndim == 2
    if not np.isfinite(weight).all():
        raise CheckpointError(f"{name}: holds NaN or infinity; is the checkpoint damaged?")
    rows, columns = weight.shape
    padded = np.pad(weight, ((0, 0), (0, -columns % group_size))).astype(np.float32)
    groups = padded.reshape(rows, -1, group_size)
    scale = (np.abs(groups).max(-1) / np.float32(MAX_INT8)).astype(np.float16)
    wide = scale.astype(np.float32)[..., None]
    ratio = np.divide(groups, wide, out=np.zeros_like(groups), where=wide > 0)
    codes = np.clip(np.rint(ratio), -MAX_INT8, MAX_INT8).astype(np.int8)
    return codes.reshape(rows, -1), scale


def dequantize_int8(codes: Array, scale: Array, columns: int) -> Array:
    """Maps codes (N, G * group) and scale (N, G) to code * scale: (N, columns) float32, exact."""
    grouped = codes.reshape(*scale.shape, -1).astype(np.float32)
    values = grouped * scale.astype(np.float32)[..., None]
    return np.ascontiguousarray(values.reshape(len(codes), -1)[:, :columns])
