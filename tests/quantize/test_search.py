"""Searched scales, and the fast versions against their numpy references, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from quantize.errors import CheckpointError, ShapeError
from quantize.fast import quantize_groups_fast, quantize_int8_fast, search_groups_fast
from quantize.int8 import quantize_int8
from quantize.schemes import GroupScheme, dequantize_groups, quantize_groups
from quantize.search import search_groups

MLC = GroupScheme.load("q4f16_1")
ALL_CODES = replace(MLC, max_code=15)


def weights(seed: int = 0, spread: float = 0.05) -> np.ndarray:
    """Random rows with outliers, and groups at the ends of what float16 holds."""
    rng = np.random.default_rng(seed)
    weight = (rng.standard_t(4, (90, 96)) * spread).astype(np.float16)
    weight[3], weight[4], weight[5, 32:64] = 0, 65504, -65504
    weight[6, :32], weight[7, 64:] = 6e-8, np.float16(2e-7)
    weight[8, :32], weight[9, 5] = -np.abs(weight[8, :32]), 30
    weight[10, :32] = np.tile(np.float16([1, -1]), 16)
    return weight


def squared_error(weight: np.ndarray, q: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Returns each group's squared error (N, K/32)."""
    error = dequantize_groups(q, scale, MLC) - weight.astype(np.float32)
    return (error.astype(np.float64) ** 2).reshape(*scale.shape, -1).sum(-1)


@pytest.mark.parametrize("scheme", [MLC, ALL_CODES])
@pytest.mark.parametrize("spread", [1e-7, 1e-4, 0.05, 100.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_fast_equals_the_references(scheme: GroupScheme, spread: float, weighted: bool) -> None:
    weight = weights(1, spread)
    importance = np.random.default_rng(2).random(96).astype(np.float32) + 0.01
    pairs = [
        (quantize_groups_fast(weight, scheme, name="w"), quantize_groups(weight, scheme, name="w"))
    ]
    given = importance if weighted else None
    fast = search_groups_fast(weight, scheme, name="w", importance=given)
    pairs.append((fast, search_groups(weight, scheme, name="w", importance=given)))
    for (q, scale), (expected_q, expected_scale) in pairs:
        assert q.dtype == np.uint8 and scale.dtype == np.float16
        np.testing.assert_array_equal(scale.view(np.uint16), expected_scale.view(np.uint16))
        np.testing.assert_array_equal(q, expected_q)


def test_every_float16_pattern_is_rounded_alike() -> None:
    patterns = np.random.default_rng(3).permutation(2**16).astype(np.uint16).view(np.float16)
    weight = np.where(np.isfinite(patterns), patterns, np.float16(0)).reshape(-1, 64)
    for scheme in (MLC, ALL_CODES):
        for reference, fast in (
            (quantize_groups, quantize_groups_fast),
            (search_groups, search_groups_fast),
        ):
            q, scale = fast(weight, scheme, name="w")
            expected_q, expected_scale = reference(weight, scheme, name="w")
            np.testing.assert_array_equal(scale.view(np.uint16), expected_scale.view(np.uint16))
            np.testing.assert_array_equal(q, expected_q)


@pytest.mark.parametrize("columns", [1, 96, 127, 128, 300])
@pytest.mark.parametrize("spread", [1e-7, 1e-4, 0.05, 100.0])
def test_fast_int8_equals_the_reference(columns: int, spread: float) -> None:
    weight = np.tile(weights(5, spread), 4)[:, :columns]
    patterns = np.random.default_rng(6).integers(0, 2**16, (64, columns)).astype(np.uint16)
    any_value = patterns.view(np.float16)
    weight = np.vstack([weight, np.where(np.isfinite(any_value), any_value, np.float16(0))])
    q, scale = quantize_int8_fast(weight, name="w")
    expected_q, expected_scale = quantize_int8(weight, name="w")
    assert q.dtype == np.int8 and scale.dtype == np.float16
    np.testing.assert_array_equal(scale.view(np.uint16), expected_scale.view(np.uint16))
    np.testing.assert_array_equal(q, expected_q)


def test_loses_less_than_plain_rounding() -> None:
    weight = np.random.default_rng(4).standard_normal((400, 96)).astype(np.float16)
    plain = squared_error(weight, *quantize_groups(weight, MLC, name="w"))
    fifteen = squared_error(weight, *search_groups(weight, MLC, name="w"))
    sixteen = squared_error(weight, *search_groups(weight, ALL_CODES, name="w"))
    assert fifteen.sum() < 0.9 * plain.sum()
    assert sixteen.sum() < 0.78 * plain.sum()


def test_uses_the_sixteenth_code_and_negative_scales() -> None:
    weight = np.zeros((2, 32), np.float16)
    weight[0, :2], weight[1, :2] = (8, -7), (-8, 7)
    q, scale = search_groups(weight, ALL_CODES, name="w")
    assert scale[0, 0] == 1 and scale[1, 0] == -1
    assert q[0, 0] == q[1, 0] == 15
    assert squared_error(weight, q, scale).sum() == 0


def test_what_is_important_loses_less() -> None:
    weight = np.random.default_rng(5).standard_normal((200, 32)).astype(np.float16)
    importance = np.ones(32, np.float32)
    importance[7] = 100
    errors = [
        (dequantize_groups(*search_groups(weight, ALL_CODES, name="w", importance=i), MLC) - weight)
        for i in (None, importance)
    ]
    assert (errors[1][:, 7] ** 2).sum() < 0.5 * (errors[0][:, 7] ** 2).sum()


def test_zeros_stay_zero() -> None:
    weight = np.zeros((3, 64), np.float16)
    q, scale = search_groups(weight, ALL_CODES, name="w")
    assert (q == ALL_CODES.zero_point).all() and (scale == 0).all()


@pytest.mark.parametrize("function", [quantize_groups_fast, search_groups_fast, search_groups])
def test_refuses_what_it_cannot_hold(function: object) -> None:
    assert callable(function)
    bad = np.zeros((4, 64), np.float16)
    bad[2, 33] = np.nan
    with pytest.raises(CheckpointError, match=r"layers\.0\.o: 1 values .* at \[2, 33\]"):
        function(bad, MLC, name="layers.0.o")
    with pytest.raises(ShapeError, match="embed: shape"):
        function(np.zeros((4, 33), np.float16), MLC, name="embed")
