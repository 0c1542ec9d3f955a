"""Exponential and GELU as polynomials, for vectors; no C library, so every target says the same."""

from __future__ import annotations

import math

from tvm.script.ir_builder import tirx as T

from convert.blocks.tir import LANES, Expr, spread, typed

_LN2_HIGH = 0.693359375  # exact in float32, with zeros to spare for the product with n
_LN2_LOW = math.log(2) - _LN2_HIGH
_EXP_MIN, _EXP_MAX = -87.0, 88.0  # results stay normal float32 numbers
# erfc(z) = t * P(t) * exp(-z^2) with t = 1 / (1 + p z): Abramowitz and Stegun 7.1.26, where
# |error| <= 1.5e-7. Lowest power first.
_ERFC_P = 0.3275911
_ERFC = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


def exp(x: Expr, lanes: int = LANES, degree: int = 7) -> Expr:
    """Returns e**x for float32 vectors, x cut to [-87, 88].

    2**n times the Taylor polynomial of a degree on [-ln2/2, ln2/2]; the relative error is below
    3e-7 for degree 7, 4e-6 for degree 5.
    """
    x = T.Bind(T.max(T.min(x, _f32(_EXP_MAX, lanes)), _f32(_EXP_MIN, lanes)))
    n = T.Bind(T.floor(x * _f32(1 / math.log(2), lanes) + _f32(0.5, lanes)))
    r = T.Bind(x - n * _f32(_LN2_HIGH, lanes) - n * _f32(_LN2_LOW, lanes))
    value = _horner([1 / math.factorial(i) for i in range(degree + 1)], r, lanes)
    exponent = T.cast(n, typed("int32", lanes)) + spread(T.int32(127), lanes)
    power = T.reinterpret(
        typed("float32", lanes), T.shift_left(exponent, spread(T.int32(23), lanes))
    )
    return T.Bind(value * power)


def gelu(x: Expr, lanes: int = LANES) -> Expr:
    """Returns x * Phi(x), the exact GELU, with an error below 1e-6; float32 vectors."""
    x = T.Bind(x)
    zero, one = _f32(0, lanes), _f32(1, lanes)
    z = T.Bind(T.max(x, zero - x) * _f32(math.sqrt(0.5), lanes))
    t = T.Bind(one / (one + _f32(_ERFC_P, lanes) * z))
    upper = T.Bind(_f32(0.5, lanes) * t * _horner(_ERFC, t, lanes) * exp(zero - z * z, lanes))
    return T.Bind(x * T.Select(x > zero, one - upper, upper))


def silu(x: Expr, lanes: int = LANES) -> Expr:
    """Returns x * sigmoid(x) for float32 vectors."""
    one = _f32(1, lanes)
    return T.Bind(x / (one + exp(_f32(0, lanes) - x, lanes)))


def _horner(coefficients: list[float] | tuple[float, ...], x: Expr, lanes: int) -> Expr:
    value = _f32(coefficients[-1], lanes)
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + _f32(coefficient, lanes)
    return T.Bind(value)


def _f32(value: float, lanes: int) -> Expr:
    return spread(T.float32(value), lanes)
