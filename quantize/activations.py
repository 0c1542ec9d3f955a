"""Int8 activations and the products of quantized weights with them, in numpy.

What every kernel computes: activations are quantized per token and group of 32 to int8, a group's
product is a whole number, and the groups are added in float32.
"""

from __future__ import annotations

import numpy as np

from quantize.errors import ShapeError
from quantize.schemes import Array, GroupScheme

MAX_INT8 = 127  # the code of a group's largest magnitude


def quantize_activations(x: Array, group_size: int) -> tuple[Array, Array]:
    """Quantizes groups of activations (..., K) float32.

    Returns:
        q (..., K) int8, rint(x / scale), half to even; scale (..., K/G) float32, max|x| / 127.
        A group of zeros has scale 0 and codes 0.
    """
    if x.shape[-1] % group_size:
        raise ShapeError(f"activations {x.shape}: the width is not a multiple of {group_size}")
    groups = x.astype(np.float32, copy=False).reshape(*x.shape[:-1], -1, group_size)
    scale = np.abs(groups).max(-1) / np.float32(MAX_INT8)
    divisor = np.where(scale == 0, np.float32(1), scale)[..., None]
    return np.rint(groups / divisor).astype(np.int8).reshape(x.shape), scale


def pad_groups(x: Array, group_size: int) -> Array:
    """Fills the last group of activations (L, K) with zeros."""
    return np.pad(x, ((0, 0), (0, -x.shape[1] % group_size)))


def multiply_w4a8(x: Array, q: Array, scale: Array, scheme: GroupScheme) -> Array:
    """Returns x @ W.T in the arithmetic of the kernels.

    Args:
        x: (L, K) float32.
        q: (N, K) uint8 codes.
        scale: (N, K/G) float16.
        scheme: the number format.

    Returns:
        (L, N) float32. Kernels may add the groups in another order, or fuse product and sum.
    """
    codes, x_scale = quantize_activations(x, scheme.group_size)
    return multiply_codes(codes, x_scale, q.astype(np.int8) - np.int8(scheme.zero_point), scale)


def multiply_codes(codes: Array, x_scale: Array, weight: Array, scale: Array) -> Array:
    """Returns x @ W.T of whole numbers and scales, in the arithmetic of the kernels.

    Args:
        codes: (L, G * group) int8 activations, see `quantize_activations`.
        x_scale: (L, G) float32.
        weight: (N, G * group) int8, zero point left out.
        scale: (N, G) float16.

    Returns:
        (L, N) float32. Kernels may add the groups in another order, or fuse product and sum.
    """
    rows, groups = scale.shape
    size = weight.shape[1] // groups
    wide = scale.astype(np.float32)
    out = np.zeros((len(codes), rows), np.float32)
    for g in range(groups):
        inputs = slice(g * size, (g + 1) * size)
        # Whole numbers below 2**24: float32 holds them exactly, and multiplies them faster.
        dot = codes[:, inputs].astype(np.float32) @ weight[:, inputs].astype(np.float32).T
        out += dot * (wide[:, g] * x_scale[:, g, None])
    return out
