"""Products of several tokens by a matrix unit's outer products, from the same tiles of weights.

Tokens are packed as weights are: tiles of 16, whose blocks hold 4 inputs of each. A call then
multiplies a tile of weights with all tokens; 4-bit codes are unpacked once for it.
"""

from __future__ import annotations

from tvm.script.ir_builder import tirx as T

from convert.blocks.linear import CodesProduct, Linear
from convert.blocks.products import MatrixProduct
from convert.blocks.tir import Expr, Kernel, call, kernel, local, span, store
from quantize.layout import TILE_ROWS, tiles

FUNCTION = "minicpmv_outer_products"  # runtime/engine/outer_products.h
_BLOCK = 4 * TILE_ROWS  # bytes
_CODES = 16  # of a token that are loaded at a time


def pack_tokens(groups: int, size: int, least: int) -> Expr:
    """Makes the kernel (codes (L, G, size), scale (L, G)) -> tokens, scales.

    tokens (ceil(L/16), G, size / 4, 64) int8, scales (ceil(L/16), G, 16) float32. The last tile's
    missing tokens repeat the last one. For fewer than `least` tokens it does nothing.
    """
    with kernel(f"pack_{groups * size}") as k:
        length = k.length("rows")
        codes = k.tensor("codes", (length, groups, size), "int8")
        scale = k.tensor("scale", (length, groups))
        packed = _Packed(length, size)
        packed.add(k, groups)
        with T.If(length >= least), T.Then(), T.parallel(0, token_tiles(length)) as tile:
            rows = [T.Bind(T.min(tile * TILE_ROWS + m, length - 1)) for m in range(TILE_ROWS)]
            with T.serial(0, groups) as group:
                for m, row in enumerate(rows):
                    store(packed.scales, scale[row, group], tile, group, T.int64(m))
                with T.serial(0, size // _CODES) as part:
                    columns = span(part * _CODES, _CODES)
                    words = [
                        T.Bind(T.reinterpret("int32x4", codes[row, group, columns])) for row in rows
                    ]
                    for i in range(_CODES // 4):
                        block = T.Shuffle(words, [4 * m + i for m in range(TILE_ROWS)])
                        block = T.reinterpret(f"int8x{_BLOCK}", block)
                        at = part * (_CODES // 4) + i
                        store(packed.tokens, block, tile, group, at, span(0, _BLOCK))
    return k.function


def token_tiles(length: Expr) -> Expr:
    """Returns how many tiles hold so many tokens."""
    return (length + TILE_ROWS - 1) // TILE_ROWS


def linear_outer(
    c: Linear, size: int, by: MatrixProduct, blocks: int, dtype: str, zero_point: int, least: int
) -> Expr:
    """Makes the kernel of `linear.linear_codes` with `pack_tokens`' results before the weights.

    Args:
        c: the product.
        size: inputs of a group.
        by: how fewer than `least` tokens are multiplied.
        blocks: that hold a group's codes.
        dtype: of the codes; unsigned ones are of 4 bits.
        zero_point: of codes of 4 bits.
        least: tokens from which on the matrix unit is used.
    """
    bits = 8 * blocks * 4 // size
    with kernel(f"linear_q{bits}_{c.rows}x{c.columns}") as k:
        length = k.length("rows")
        packed = _Packed(length, size)
        product = CodesProduct(k, c, size, by, blocks, dtype, length, packed.add)
        with T.If(length < least):
            with T.Then():
                product.multiply_all()
            with T.Else(), T.parallel(0, tiles(c.rows)) as tile:
                weights = product.q_weight[tile, 0, 0, 0]
                if bits == 4:
                    weights = _unpacked(product, tile, zero_point)[0, 0, 0]
                call(
                    FUNCTION,
                    weights,
                    product.q_scale[tile, 0, 0],
                    packed.tokens[0, 0, 0, 0],
                    packed.scales[0, 0, 0],
                    product.out[0, tile * TILE_ROWS],
                    T.int64(4 * c.rows),
                    length,
                    T.min(c.rows - tile * TILE_ROWS, TILE_ROWS),
                    T.int64(product.groups),
                    T.int64(size // 4),
                )
                if c.bias or c.gelu or c.residual is not None:
                    _finish(product, tile)
    return k.function


class _Packed:
    """The parameters that hold packed tokens."""

    def __init__(self, length: Expr, size: int) -> None:
        self._length, self._size = length, size
        self.tokens: Expr = None
        self.scales: Expr = None

    def add(self, k: Kernel, groups: int) -> None:
        """Adds them to a kernel."""
        of_tile = (token_tiles(self._length), groups)
        self.tokens = k.tensor("tokens", (*of_tile, self._size // 4, _BLOCK), "int8")
        self.scales = k.tensor("scales", (*of_tile, TILE_ROWS))


def _unpacked(product: CodesProduct, tile: Expr, zero_point: int) -> Expr:
    """Unpacks a tile of 4-bit codes (G, blocks, 64) to int8 (G, 2 * blocks, 64)."""
    stored = product.q_weight
    blocks = int(stored.shape[2])
    unpacked = local((product.groups, 2 * blocks, _BLOCK), "int8")
    with T.serial(0, product.groups) as group:
        for i in range(blocks):
            codes = T.Bind(stored[tile, group, i, span(0, _BLOCK)])
            low = T.bitwise_and(codes, T.broadcast(T.uint8(15), _BLOCK))
            high = T.shift_right(codes, T.broadcast(T.uint8(4), _BLOCK))
            for at, half in ((i, low), (blocks + i, high)):
                signed = T.reinterpret(f"int8x{_BLOCK}", half)
                signed = signed - T.broadcast(T.int8(zero_point), _BLOCK)
                store(unpacked, signed, group, T.int64(at), span(0, _BLOCK))
    return unpacked


def _finish(product: CodesProduct, tile: Expr) -> None:
    """Applies the epilogue to a tile's sums, which are in `out`."""
    with T.serial(0, product.length) as row:

        def written(_: int, at: Expr, lanes: int) -> Expr:
            return product.out[row, span(tile * TILE_ROWS + at, lanes)]

        product.finish(written, row, 1, tile)
