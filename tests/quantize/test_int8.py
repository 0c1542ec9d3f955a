"""Int8 weights: rounding, ragged widths, tiles."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from quantize.errors import CheckpointError, ShapeError
from quantize.fast import quantize_int8_fast
from quantize.int8 import dequantize_int8, quantize_int8
from quantize.layout import pack_int8_tiles, unpack_int8_tiles


def _weight(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(rows).standard_normal((rows, columns)).astype(np.float16)


@pytest.mark.parametrize("columns", [1, 127, 128, 129, 4304])
def test_error_is_at_most_half_a_step(columns: int) -> None:
    weight = _weight(17, columns)
    codes, scale = quantize_int8(weight, name="w")
    groups = -(-columns // 128)
    assert codes.shape == (17, groups * 128)
    assert scale.shape == (17, groups)
    assert not codes[:, columns:].any(), "what fills the last group is zero"
    step = np.repeat(scale.astype(np.float64), 128, axis=1)[:, :columns]
    error = np.abs(dequantize_int8(codes, scale, columns) - weight.astype(np.float64))
    # Half a step; and 2**-11 of 127 steps, by which a rounded scale moves a group's ends.
    assert (error <= step * (0.5 + 127 * 2**-11)).all()
    assert np.abs(codes.astype(int)).max() == 127


def test_zeros_and_what_no_scale_reaches() -> None:
    weight = np.zeros((2, 64), np.float16)
    weight[1, 3] = np.float16(2**-24)  # a scale of 2**-31 is none
    codes, scale = quantize_int8(weight, name="w")
    assert not codes.any()
    assert not scale.any()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("function", [quantize_int8, quantize_int8_fast])
def test_refuses_what_is_not_finite(value: float, function: Callable[..., object]) -> None:
    weight = _weight(4, 40)
    weight[2, 39] = value
    with pytest.raises(CheckpointError, match=r"vision\.x: holds NaN or infinity"):
        function(weight, name="vision.x")


@pytest.mark.parametrize("rows", [1, 16, 33])
def test_tiles_come_back(rows: int) -> None:
    codes, scale = quantize_int8(_weight(rows, 140), name="w")
    q_weight, q_scale = pack_int8_tiles(codes, scale)
    assert q_weight.shape == (-(-rows // 16), 2, 32, 64)
    again = unpack_int8_tiles(q_weight, q_scale, rows)
    np.testing.assert_array_equal(again[0], codes)
    np.testing.assert_array_equal(again[1], scale)
    # By the words of the layout: tile 0, group 1, block 2, row 0 has inputs 136 to 139.
    np.testing.assert_array_equal(q_weight[0, 1, 2, :4], codes[0, 136:140])


def test_refuses_scales_of_another_matrix() -> None:
    codes, scale = quantize_int8(_weight(4, 256), name="w")
    with pytest.raises(ShapeError, match="do not fit scales"):
        pack_int8_tiles(codes, scale[:, :1])
