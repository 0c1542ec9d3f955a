"""Exponential and GELU as polynomials, for vectors; no C library, so all targets agree."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvm.script.ir_builder import tirx as T

from convert.blocks.tir import LANES, Expr, fold, spread, typed
from quantize.activations import MAX_INT8

_LN2_HIGH = 0.693359375  # exact in float32, with zeros to spare for the product with n
_LN2_LOW = math.log(2) - _LN2_HIGH
_EXP_MIN, _EXP_MAX = -87.0, 88.0  # results stay normal float32 numbers
_SHIFT = 1.5 * 2**23  # a float32 of this size has no bits below 1
# 2**x on [-1/2, 1/2], of least largest relative error. Lowest power first.
_EXP2 = (0.9999992614, 0.6931218147, 0.2402474484, 5.591786028e-2, 9.570101435e-3)
_ROUGH_EXP2 = (0.9999280734, 0.6932609864, 0.2426111246, 5.517166531e-2)
# erf(z) = z P(z^2) / Q(z^2) on [-4, 4], |error| < 6e-8: a rational function of least largest
# error, by weighted least squares over 4,001 points. Lowest power first.
_ERF_END = 4.0  # where erf is 1 to the last bit but one
_ERF_P = (
    *(1.128378677, 0.2139434340, 5.243328194e-2, 4.292989754e-3),
    *(1.555346392e-4, -1.990298521e-6, 1.921698166e-8),
)
_ERF_Q = (1.0, 0.5229300884, 0.1207990815, 1.555096951e-2, 1.098020635e-3)


def int8_step(magnitudes: Expr, lanes: int = LANES) -> Expr:
    """Returns the step of int8 codes for values up to the largest of some magnitudes.

    Args:
        magnitudes: a local buffer (lanes,) float32; it is overwritten.
        lanes: a power of two.
    """
    return T.Bind(fold(magnitudes, T.max, lanes) / T.float32(MAX_INT8))


def int8_divisor(step: Expr) -> Expr:
    """Returns what values are divided by before they are rounded: `step`, or 1 where all are 0."""
    return T.Bind(T.Select(step == T.float32(0), T.float32(1), step))


def exp(x: Expr, lanes: int = LANES) -> Expr:
    """Returns e**x for float32 vectors, x cut to [-87, 88].

    2**n times the Taylor polynomial of degree 7 on [-ln2/2, ln2/2]; the relative error is below
    3e-7.
    """
    x = T.Bind(T.max(T.min(x, _f32(_EXP_MAX, lanes)), _f32(_EXP_MIN, lanes)))
    n = T.Bind(T.floor(x * _f32(1 / math.log(2), lanes) + _f32(0.5, lanes)))
    r = T.Bind(x - n * _f32(_LN2_HIGH, lanes) - n * _f32(_LN2_LOW, lanes))
    value = _horner([1 / math.factorial(i) for i in range(8)], r, lanes)
    exponent = T.cast(n, typed("int32", lanes)) + spread(T.int32(127), lanes)
    power = T.reinterpret(
        typed("float32", lanes), T.shift_left(exponent, spread(T.int32(23), lanes))
    )
    return T.Bind(value * power)


def exp2(x: Expr, lanes: int = LANES) -> Expr:
    """Returns 2**x for float32 vectors, x within [-126, 126]; the relative error is below 3e-6.

    For results that are rounded to 16 bits: half the instructions of `exp`.
    """
    return _exp2(x, _EXP2, lanes)


def rough_exp2(x: Expr, factor: float, lanes: int = LANES) -> Expr:
    """Returns factor * 2**x for float32 vectors, x within [-126, 0].

    The relative error is below 1e-4: for what int8 products blur more.
    """
    return _exp2(x, [factor * c for c in _ROUGH_EXP2], lanes)


def _exp2(x: Expr, coefficients: Sequence[float], lanes: int) -> Expr:
    words = typed("int32", lanes)
    x = T.Bind(x)
    n, bits = _nearest(x, lanes)
    value = _horner(coefficients, T.Bind(x - n), lanes)
    power = T.shift_left(bits, spread(T.int32(23), lanes))
    return T.Bind(T.reinterpret(typed("float32", lanes), T.reinterpret(words, value) + power))


def nearest(x: Expr, lanes: int = LANES) -> tuple[Expr, Expr]:
    """Rounds float32 vectors, within int16: to float32, and to int16."""
    n, bits = _nearest(x, lanes)
    return n, T.cast(bits, typed("int16", lanes))


def _nearest(x: Expr, lanes: int) -> tuple[Expr, Expr]:
    """Rounds float32 vectors: to float32, and to int32 of which the low 22 bits are right."""
    bits = T.Bind(T.reinterpret(typed("int32", lanes), x + _f32(_SHIFT, lanes)))
    # TVM would simplify x + c - c to x; it does not simplify this.
    shifted = T.reinterpret(typed("float32", lanes), bits)
    return T.Bind(shifted - _f32(_SHIFT, lanes)), bits


def gelu(x: Expr, lanes: int = LANES) -> Expr:
    """Returns x * Phi(x), the exact GELU, for float32 vectors.

    The error is below 1e-6 on [-12, 12], and below 1e-7 of x beyond.
    """
    x = T.Bind(x)
    zero, half, end = _f32(0, lanes), _f32(0.5, lanes), _f32(_ERF_END, lanes)
    z = T.Bind(x * _f32(math.sqrt(0.5), lanes))
    cut = T.Bind(T.max(T.min(z, end), zero - end))
    square = T.Bind(cut * cut)
    erf = cut * _horner(_ERF_P, square, lanes) / _horner(_ERF_Q, square, lanes)
    return T.Bind(T.Select(z > zero - end, x * (half + half * erf), zero))


def silu(x: Expr, lanes: int = LANES) -> Expr:
    """Returns x * sigmoid(x) for float32 vectors."""
    one = _f32(1, lanes)
    return T.Bind(x / (one + exp(_f32(0, lanes) - x, lanes)))


def _horner(coefficients: Sequence[float], x: Expr, lanes: int) -> Expr:
    value = _f32(coefficients[-1], lanes)
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + _f32(coefficient, lanes)
    return T.Bind(value)


def _f32(value: float, lanes: int) -> Expr:
    return spread(T.float32(value), lanes)
