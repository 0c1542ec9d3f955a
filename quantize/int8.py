"""Int8 weights: groups of 128 along the input dimension share a float16 scale.

A code is rint(value / scale), half to even, with scale = max|value| / 127, so codes are within
-127..127. A last group that the width does not fill is filled with zeros.
"""

from __future__ import annotations

import numpy as np

from quantize.activations import MAX_INT8
from quantize.errors import CheckpointError
from quantize.schemes import Array, all_finite

INT8_GROUP = 128  # 8.125 bits per weight; kernels convert sums of whole numbers once per group


def quantize_int8(weight: Array, *, name: str) -> tuple[Array, Array]:
    """Quantizes groups of a matrix (N, K) float16.

    Returns:
        codes (N, G * 128) int8 and scale (N, G) float16, G = ceil(K / 128). Where
        a group's values are too small for any scale, scale and codes are 0.

    Raises:
        CheckpointError: a value is not finite.
    """
    check_int8(weight, name)
    rows, columns = weight.shape
    padded = np.pad(weight, ((0, 0), (0, -columns % INT8_GROUP))).astype(np.float32)
    groups = padded.reshape(rows, -1, INT8_GROUP)
    scale = (np.abs(groups).max(-1) / np.float32(MAX_INT8)).astype(np.float16)
    wide = scale.astype(np.float32)[..., None]
    ratio = np.divide(groups, wide, out=np.zeros_like(groups), where=wide > 0)
    codes = np.clip(np.rint(ratio), -MAX_INT8, MAX_INT8).astype(np.int8)
    return codes.reshape(rows, -1), scale


def check_int8(weight: Array, name: str) -> None:
    """Raises CheckpointError where a matrix (N, K) float16 holds NaN or infinity."""
    assert weight.dtype == np.float16 and weight.ndim == 2
    if not all_finite(weight):
        raise CheckpointError(f"{name}: holds NaN or infinity; is the checkpoint damaged?")


def dequantize_int8(codes: Array, scale: Array, columns: int) -> Array:
    """Maps codes (N, G * 128) and scale (N, G) to code * scale: (N, columns) float32, exact."""
    grouped = codes.reshape(*scale.shape, -1).astype(np.float32)
    values = grouped * scale.astype(np.float32)[..., None]
    return np.ascontiguousarray(values.reshape(len(codes), -1)[:, :columns])
