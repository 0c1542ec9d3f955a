import numpy as np
import pytest

from quantize.errors import ShapeError
from quantize.layout import (
    pack_mlc,
    pack_tiles,
    tile_f16,
    unpack_mlc,
    unpack_tiles,
    untile_f16,
)
from quantize.schemes import GroupScheme

Q4 = GroupScheme.load("q4f16_1")


def _codes(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(rows * 1000 + columns)
    q = rng.integers(0, 16, (rows, columns)).astype(np.uint8)
    return q, rng.random((rows, columns // 32)).astype(np.float16)


@pytest.mark.parametrize(("rows", "columns"), [(1, 32), (16, 64), (17, 96), (193, 128)])
def test_tiles_come_back(rows: int, columns: int) -> None:
    q, scale = _codes(rows, columns)
    q_weight, q_scale = pack_tiles(q, scale, Q4)
    count = -(-rows // 16)
    assert (q_weight.shape, q_weight.dtype) == ((count, columns // 32, 4, 64), np.uint8)
    assert (q_scale.shape, q_scale.dtype) == ((count, columns // 32, 16), np.float16)
    back, back_scale = unpack_tiles(q_weight, q_scale, rows)
    np.testing.assert_array_equal(back, q)
    np.testing.assert_array_equal(back_scale, scale)


def test_place_of_every_code() -> None:
    """The layout in words: tile, group, block of 4 inputs, 4 bytes per row, half a byte each."""
    q, scale = _codes(33, 96)
    q_weight, q_scale = pack_tiles(q, scale, Q4)
    for n in range(33):
        for k in range(96):
            half, block, byte = (k % 32) // 16, (k % 16) // 4, k % 4
            stored = q_weight[n // 16, k // 32, block, (n % 16) * 4 + byte]
            assert (stored >> (4 * half)) & 15 == q[n, k]
            assert q_scale[n // 16, k // 32, n % 16] == scale[n, k // 32]


def test_missing_rows_are_zero() -> None:
    q_weight, q_scale = pack_tiles(*_codes(17, 32), Q4)
    assert (q_weight[1, :, :, 4:] == 0x77).all()
    assert (q_scale[1, :, 1:] == 0).all()


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (16, 5), (17, 540)])
def test_float16_tiles_come_back(rows: int, columns: int) -> None:
    weight = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)
    tiled = tile_f16(weight)
    assert tiled.shape == (-(-rows // 16), columns, 16)
    np.testing.assert_array_equal(untile_f16(tiled, rows), weight.astype(np.float16))
    assert tiled[-1, :, (rows - 1) % 16 + 1 :].size == 0 or not tiled[-1, :, rows % 16 :].any()


def test_mlc_words_come_back() -> None:
    q, _ = _codes(7, 64)
    assert pack_mlc(q)[0, 0] == sum(int(v) << (4 * i) for i, v in enumerate(q[0, :8]))
    np.testing.assert_array_equal(unpack_mlc(pack_mlc(q)), q)


def test_refuses_codes_that_do_not_fit() -> None:
    q, scale = _codes(16, 64)
    with pytest.raises(ShapeError, match="do not fit scales"):
        pack_tiles(q[:, :32], scale, Q4)
    with pytest.raises(ShapeError, match="not a multiple of 8"):
        pack_mlc(q[:, :12])
