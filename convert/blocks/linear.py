"""Matrix products with tiled weights: x (L, K) times W (N, K) transposed, parallel over tiles.

A tile's 16 rows are the lanes; a block of tokens shares each load of the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm.script.ir_builder import tirx as T

from convert.blocks.maths import gelu
from convert.blocks.tir import (
    LANES,
    Expr,
    Kernel,
    each_row_block,
    fold,
    kernel,
    local,
    span,
    spread,
    store,
    wide,
)
from quantize.activations import MAX_INT8
from quantize.layout import TILE_ROWS, tiles
from quantize.schemes import GroupScheme

# Tokens that share a load of weights. With AVX2's 16 registers of 8 floats: 6 tokens of 2
# registers for float16 weights; 4 for 4-bit weights, whose unpacking takes the rest.
F16_TOKENS, Q4_TOKENS = 6, 4
# A 64-byte block as 32 words of 16 bits: shifts that bring inputs (c, c+2) of each row into the
# low 4 bits of two neighbouring words; c = 0, 1 of the low half, then of the high half.
_SHIFTS = (0, 8, 4, 12)

Epilogue = Callable[[Expr, Expr, Expr, int], Expr]  # (value, row, columns, lanes) -> value


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A product and what follows it in the same kernel, in the order of the fields."""

    rows: int  # N
    columns: int  # K
    bias: bool = False
    gelu: bool = False
    residual: float | None = None  # out = residual + factor * value


def linear_f16(c: Linear) -> Expr:
    """Makes the kernel (x, weight, [bias], [residual]) -> (L, N), float32.

    x (L, K) float32, weight (ceil(N/16), K, 16) float16, bias (N,) and residual (L, N) float32.
    """
    with kernel("linear_f16") as k:
        length = k.length("rows")
        x = k.tensor("x", (length, c.columns))
        weight = k.tensor("weight", (tiles(c.rows), c.columns, TILE_ROWS), "float16")
        epilogue = _epilogue(k, c, length)
        out = k.tensor("out", (length, c.rows))
        with T.parallel(0, tiles(c.rows)) as tile:

            def multiply(first: Expr, count: int) -> None:
                sums = _zeros(count)
                with T.serial(0, c.columns) as i:
                    w = T.Bind(wide(weight[tile, i, span(0)]))
                    for m in range(count):
                        store(sums, sums[m, span(0)] + w * spread(x[first + m, i]), m, span(0))
                _finish(out, sums, first, count, tile, c.rows, epilogue)

            each_row_block(length, F16_TOKENS, multiply)
    return k.function


def quantize(width: int, scheme: GroupScheme) -> Expr:
    """Makes the kernel (x (L, K)) -> codes, scale, offset: int8 activations for `linear_q4`.

    codes (L, K/32, 4, 4, 2) int16: for each 64-byte block of a weight tile and each shift, the
    two inputs whose products stand in neighbouring words. scale (L, K/32) float32. offset
    (L, K/32) int32: the codes' sum times minus the weights' zero point.
    """
    groups = width // scheme.group_size
    with kernel("quantize") as k:
        length = k.length("rows")
        x = k.tensor("x", (length, width))
        codes = k.tensor("codes", (length, groups, 4, 4, 2), "int16")
        scale = k.tensor("scale", (length, groups))
        offset = k.tensor("offset", (length, groups), "int32")
        with T.parallel(0, length) as row:
            with T.serial(0, groups) as group:
                halves = [
                    T.Bind(x[row, span(group * scheme.group_size + half * LANES)])
                    for half in range(2)
                ]
                low, high = (T.max(v, spread(T.float32(0)) - v) for v in halves)
                partial, rounded = local((LANES,)), local((2, LANES))
                store(partial, T.max(low, high), span(0))
                step = T.Bind(fold(partial, T.max, LANES) / T.float32(MAX_INT8))
                store(scale, step, row, group)
                divisor = T.Bind(T.Select(step == T.float32(0), T.float32(1), step))
                for half, values in enumerate(halves):
                    store(rounded, T.nearbyint(values / spread(divisor)), half, span(0))
                store(partial, rounded[0, span(0)] + rounded[1, span(0)], span(0))
                total = T.cast(fold(partial, lambda a, b: a + b, LANES), "int32")
                store(offset, total * -scheme.zero_point, row, group)
                for half in range(2):
                    for i in range(LANES):
                        place = (i // 4, half * 2 + i % 2, i % 4 // 2)
                        store(codes, T.cast(rounded[half, i], "int16"), row, group, *place)
    return k.function


def linear_q4(c: Linear, scheme: GroupScheme) -> Expr:
    """Makes the kernel (codes, scale, offset, q_weight, q_scale, [bias], [residual]) -> (L, N).

    A group's product is exact: 16 products of a code 0..15 and a code -127..127 fit into one
    16-bit word, and a row has two words.
    """
    groups = c.columns // scheme.group_size
    with kernel("linear_q4") as k:
        length = k.length("rows")
        codes = k.tensor("codes", (length, groups, 4, 4, 2), "int16")
        scale = k.tensor("scale", (length, groups))
        offset = k.tensor("offset", (length, groups), "int32")
        q_weight = k.tensor("q_weight", (tiles(c.rows), groups, 4, 64), "uint8")
        q_scale = k.tensor("q_scale", (tiles(c.rows), groups, TILE_ROWS), "float16")
        epilogue = _epilogue(k, c, length)
        out = k.tensor("out", (length, c.rows))
        with T.parallel(0, tiles(c.rows)) as tile:

            def multiply(first: Expr, count: int) -> None:
                sums = _zeros(count)
                with T.serial(0, groups) as group:
                    words = _group_product(q_weight, codes, first, count, tile, group)
                    step = T.Bind(wide(q_scale[tile, group, span(0)]))
                    for m in range(count):
                        pair = T.Bind(T.reinterpret("int32x16", words[m, span(0, 32)]))
                        sixteen = spread(T.int32(16))
                        even = T.shift_right(T.shift_left(pair, sixteen), sixteen)
                        whole = even + T.shift_right(pair, sixteen)
                        dot = wide(whole + spread(offset[first + m, group]))
                        factor = step * spread(scale[first + m, group])
                        store(sums, sums[m, span(0)] + dot * factor, m, span(0))
                _finish(out, sums, first, count, tile, c.rows, epilogue)

            each_row_block(length, Q4_TOKENS, multiply)
    return k.function


def _group_product(
    q_weight: Expr, codes: Expr, first: Expr, count: int, tile: Expr, group: Expr
) -> Expr:
    """Multiplies one group of a tile with `count` tokens: (count, 32) int16, two words per row."""
    words = local((count, 32), "int16")
    for m in range(count):
        store(words, T.broadcast(T.int16(0), 32), m, span(0, 32))
    for block in range(4):
        packed = T.Bind(T.reinterpret("uint16x32", q_weight[tile, group, block, span(0, 64)]))
        for i, shift in enumerate(_SHIFTS):
            shifted = T.shift_right(packed, T.broadcast(T.uint16(shift), 32)) if shift else packed
            code = T.bitwise_and(shifted, T.broadcast(T.uint16(15), 32))
            w = T.Bind(T.cast(code, "int16x32"))
            for m in range(count):
                two = T.reinterpret("int32", codes[first + m, group, block, i, span(0, 2)])
                a = T.reinterpret("int16x32", spread(two))
                store(words, words[m, span(0, 32)] + w * a, m, span(0, 32))
    return words


def _zeros(count: int) -> Expr:
    sums = local((count, LANES))
    for m in range(count):
        store(sums, spread(T.float32(0)), m, span(0))
    return sums


def _epilogue(k: Kernel, c: Linear, length: Expr) -> Epilogue:
    """Adds the parameters that follow the weights; returns what is done to a finished value."""
    bias = k.tensor("bias", (c.rows,)) if c.bias else None
    residual = None if c.residual is None else k.tensor("residual", (length, c.rows))

    def epilogue(value: Expr, row: Expr, columns: Expr, lanes: int) -> Expr:
        if bias is not None:
            value = value + bias[columns]
        if c.gelu:
            value = gelu(value, lanes)
        if residual is not None:
            if c.residual != 1:
                value = value * spread(T.float32(c.residual), lanes)
            value = residual[row, columns] + value
        return value

    return epilogue


def _finish(
    out: Expr, sums: Expr, first: Expr, count: int, tile: Expr, rows: int, epilogue: Epilogue
) -> None:
    """Writes a tile's columns; of the last tile only those that exist."""

    def whole() -> None:
        for m in range(count):
            columns = span(tile * TILE_ROWS)
            store(out, epilogue(sums[m, span(0)], first + m, columns, LANES), first + m, columns)

    missing = -rows % TILE_ROWS
    if not missing:
        whole()
        return
    with T.If(tile < rows // TILE_ROWS):
        with T.Then():
            whole()
        with T.Else(), T.serial(0, TILE_ROWS - missing) as i:
            for m in range(count):
                column = rows // TILE_ROWS * TILE_ROWS + i
                store(out, epilogue(sums[m, i], first + m, column, 1), first + m, column)
