"""How weights lie in a file: tiles of 16 output rows, the same for every CPU; and MLC's words.

A 4-bit tile holds, for each group of 32 inputs, 4 blocks of 64 bytes. Block j has, for each of
the 16 rows, inputs 4j..4j+3 of the group in the low halves of 4 bytes and inputs 16+4j..16+4j+3
in the high halves: a kernel loads 64 bytes and has every row's next inputs side by side.
An int8 tile holds, for each group of 128, 32 blocks of 64 bytes: block j has each row's inputs
4j..4j+3 of the group. A float16 tile holds its 16 rows' values of one input side by side. Missing
rows of the last tile are zero, and so are missing inputs of an int8 tile's last group.
"""

from __future__ import annotations

import numpy as np

from quantize.activations import MAX_INT8
from quantize.errors import ShapeError
from quantize.int8 import INT8_GROUP
from quantize.schemes import Array, GroupScheme

LAYOUT_VERSION = 1  # of the tiles; part of the program id
TILE_ROWS = 16


def tiles(rows: int) -> int:
    """Returns how many tiles hold `rows` output rows."""
    return -(-rows // TILE_ROWS)


def pack_tiles(q: Array, scale: Array, scheme: GroupScheme) -> tuple[Array, Array]:
    """Packs 4-bit codes into tiles.

    Args:
        q: (N, K) uint8 codes.
        scale: (N, K/32) float16.
        scheme: the number format.

    Returns:
        q_weight (ceil(N/16), K/32, 4, 64) uint8; q_scale (ceil(N/16), K/32, 16) float16. Rows
        beyond N have the zero point's code and scale 0.
    """
    rows, groups = scale.shape
    if q.shape != (rows, groups * scheme.group_size):
        raise ShapeError(f"codes {q.shape} do not fit scales {scale.shape}")
    halves = _whole_tiles(q, scheme.zero_point).reshape(-1, 2, scheme.group_size // 2)
    packed = halves[:, 0] | (halves[:, 1] << 4)
    return _tile_words(packed, groups, scheme.group_size // 8), _tile_scales(scale)


def unpack_tiles(q_weight: Array, q_scale: Array, rows: int) -> tuple[Array, Array]:
    """Reverses `pack_tiles`: codes q (rows, K) uint8 and scale (rows, K/32) float16."""
    count, groups = q_weight.shape[:2]
    halves = np.stack((q_weight & 15, q_weight >> 4)).reshape(2, count, groups, 4, TILE_ROWS, 4)
    q = halves.transpose(1, 4, 2, 0, 3, 5).reshape(count * TILE_ROWS, -1)
    scale = q_scale.transpose(0, 2, 1).reshape(count * TILE_ROWS, groups)
    return np.ascontiguousarray(q[:rows]), np.ascontiguousarray(scale[:rows])


def pack_int8_tiles(codes: Array, scale: Array) -> tuple[Array, Array]:
    """Packs int8 codes (N, K) and their scales (N, K/128) into tiles, K a multiple of 128.

    Returns:
        q_weight (ceil(N/16), K/128, 32, 64) int8; q_scale (ceil(N/16), K/128, 16) float16. Rows
        beyond N are zero.
    """
    rows, groups = scale.shape
    if codes.shape != (rows, groups * INT8_GROUP):
        raise ShapeError(f"codes {codes.shape} do not fit scales {scale.shape}")
    blocks = INT8_GROUP // 4
    return _tile_words(_whole_tiles(codes, 0), groups, blocks), _tile_scales(scale)


def unpack_int8_tiles(q_weight: Array, q_scale: Array, rows: int) -> tuple[Array, Array]:
    """Reverses `pack_int8_tiles`: codes (rows, K) int8 and scale (rows, K/128) float16."""
    count, groups = q_weight.shape[:2]
    codes = q_weight.reshape(count, groups, INT8_GROUP // 4, TILE_ROWS, 4).transpose(0, 3, 1, 2, 4)
    scale = q_scale.transpose(0, 2, 1).reshape(count * TILE_ROWS, groups)
    flat = codes.reshape(count * TILE_ROWS, -1)
    return np.ascontiguousarray(flat[:rows]), np.ascontiguousarray(scale[:rows])


def tile_f16(weight: Array) -> Array:
    """Tiles a matrix (N, K): (ceil(N/16), K, 16) float16, rounded from a wider type."""
    rows, columns = weight.shape
    padded = np.zeros((tiles(rows) * TILE_ROWS, columns), np.float16)
    padded[:rows] = weight
    return np.ascontiguousarray(padded.reshape(-1, TILE_ROWS, columns).transpose(0, 2, 1))


def untile_f16(tiled: Array, rows: int) -> Array:
    """Reverses `tile_f16`: (rows, K) float16."""
    count, columns, _ = tiled.shape
    flat = tiled.transpose(0, 2, 1).reshape(count * TILE_ROWS, columns)
    return np.ascontiguousarray(flat[:rows])


def pack_mlc(q: Array) -> Array:
    """Packs codes (N, K) as MLC-LLM does: (N, K/8) uint32, first value in the lowest bits."""
    rows, columns = q.shape
    if columns % 8:
        raise ShapeError(f"codes {q.shape}: the width is not a multiple of 8")
    eights = q.reshape(rows, columns // 8, 8).astype(np.uint32)
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    packed: Array = np.bitwise_or.reduce(eights << shifts, axis=-1)
    return packed


def unpack_mlc(q_weight: Array) -> Array:
    """Reverses `pack_mlc`: codes (N, K) uint8."""
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    codes = (q_weight[..., None] >> shifts) & np.uint32(15)
    return codes.astype(np.uint8).reshape(q_weight.shape[0], -1)


def pack_mlc_int8(codes: Array) -> Array:
    """Packs int8 codes (N, K) as MLC-LLM does: (N, K/4) uint32, each code plus 127 as a byte."""
    if codes.shape[1] % 4:
        raise ShapeError(f"codes {codes.shape}: the width is not a multiple of 4")
    shifted = (codes.astype(np.int16) + MAX_INT8).astype(np.uint8)
    packed: Array = np.ascontiguousarray(shifted).view("<u4")
    return packed


def unpack_mlc_int8(q_weight: Array) -> Array:
    """Reverses `pack_mlc_int8`: codes (N, K) int8 from (N, K/4) uint32."""
    shifted = np.ascontiguousarray(q_weight, "<u4").view(np.uint8)
    codes: Array = (shifted.astype(np.int16) - MAX_INT8).astype(np.int8)
    return codes


def _whole_tiles(rows: Array, fill: int) -> Array:
    """Adds rows of `fill` until the last tile is full."""
    missing = tiles(len(rows)) * TILE_ROWS - len(rows)
    if not missing:
        return rows
    return np.pad(rows, ((0, missing), (0, 0)), constant_values=fill)


def _tile_words(rows: Array, groups: int, blocks: int) -> Array:
    """Moves bytes that are stored row by row into tiles: (N/16, groups, blocks, 64).

    The 4 bytes that a row has in a block stay together, so that they are moved as one word.
    """
    words = np.ascontiguousarray(rows).view(np.uint32).reshape(-1, TILE_ROWS, groups, blocks)
    tiled = np.ascontiguousarray(words.transpose(0, 2, 3, 1))
    return tiled.view(rows.dtype)


def _tile_scales(scale: Array) -> Array:
    """Moves scales (N, groups) into tiles (ceil(N/16), groups, 16)."""
    tiled = _whole_tiles(scale, 0).reshape(-1, TILE_ROWS, scale.shape[1]).transpose(0, 2, 1)
    return np.ascontiguousarray(tiled)
