"""Matrix products with tiled weights: x (L, K) times W (N, K) transposed, parallel over tiles.

A tile's 16 rows are the lanes; a block of tokens shares each load of the weights.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

from tvm.script.ir_builder import tirx as T

from convert.blocks.maths import gelu
from convert.blocks.products import Products, unpack
from convert.blocks.tir import (
    LANES,
    Expr,
    Kernel,
    each_row_block,
    fold,
    kernel,
    local,
    prefetch,
    span,
    spread,
    store,
    wide,
)
from quantize.activations import MAX_INT8
from quantize.layout import TILE_ROWS, tiles
from quantize.schemes import GroupScheme

# Groups of 4-bit weights between what is used and what is asked for from memory: 4 KiB. The
# processor's own prefetcher ends at each page; from 16 groups on nothing is gained.
_AHEAD = 16

Epilogue = Callable[[Expr, Expr, Expr, int], Expr]  # (value, row, columns, lanes) -> value


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A product and what follows it in the same kernel, in the order of the fields."""

    rows: int  # N
    columns: int  # K
    bias: bool = False
    gelu: bool = False
    residual: float | None = None  # out = residual + factor * value


def linear_f16(c: Linear, by: Products) -> Expr:
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

            each_row_block(length, by.f16_tokens, multiply)
    return k.function


def quantize(width: int, scheme: GroupScheme) -> Expr:
    """Makes the kernel (x (L, K)) -> codes, scale, offset: int8 activations for `linear_q4`.

    codes (L, K/32, 32) int8, scale (L, K/32) float32. offset (L, K/32) int32: the codes' sum
    times minus the weights' zero point.
    """
    size = scheme.group_size
    groups, parts = width // size, size // LANES
    with kernel("quantize") as k:
        length = k.length("rows")
        x = k.tensor("x", (length, width))
        codes = k.tensor("codes", (length, groups, size), "int8")
        scale = k.tensor("scale", (length, groups))
        offset = k.tensor("offset", (length, groups), "int32")
        with T.parallel(0, length) as row:
            with T.serial(0, groups) as group:
                values = [T.Bind(x[row, span(group * size + i * LANES)]) for i in range(parts)]
                scratch = local((LANES,))
                largest = reduce(T.max, [T.max(v, spread(T.float32(0)) - v) for v in values])
                store(scratch, largest, span(0))
                step = T.Bind(fold(scratch, T.max, LANES) / T.float32(MAX_INT8))
                store(scale, step, row, group)
                divisor = T.Bind(T.Select(step == T.float32(0), T.float32(1), step))
                rounded = [T.Bind(T.nearbyint(v / spread(divisor))) for v in values]
                store(scratch, reduce(operator.add, rounded), span(0))
                total = T.cast(fold(scratch, operator.add, LANES), "int32")
                store(offset, total * -scheme.zero_point, row, group)
                for i, part in enumerate(rounded):
                    store(codes, T.cast(part, "int8x16"), row, group, span(i * LANES))
    return k.function


def linear_q4(c: Linear, scheme: GroupScheme, by: Products) -> Expr:
    """Makes the kernel (codes, scale, offset, q_weight, q_scale, [bias], [residual]) -> (L, N).

    A group's product is exact, whatever instructions compute it.
    """
    size = scheme.group_size
    groups, blocks = c.columns // size, size // 8
    with kernel("linear_q4") as k:
        length = k.length("rows")
        codes = k.tensor("codes", (length, groups, size), "int8")
        scale = k.tensor("scale", (length, groups))
        offset = k.tensor("offset", (length, groups), "int32")
        q_weight = k.tensor("q_weight", (tiles(c.rows), groups, blocks, 64), "uint8")
        q_scale = k.tensor("q_scale", (tiles(c.rows), groups, TILE_ROWS), "float16")
        epilogue = _epilogue(k, c, length)
        out = k.tensor("out", (length, c.rows))
        with T.parallel(0, tiles(c.rows)) as tile:

            def multiply(first: Expr, count: int) -> None:
                sums = _zeros(count)
                with T.serial(0, groups) as group:
                    if count == 1:  # bound by memory
                        for i in range(blocks):
                            prefetch(q_weight[tile, group + _AHEAD, i, 0])
                        prefetch(q_scale[tile, group + _AHEAD, 0])
                    packed = [q_weight[tile, group, i, span(0, 64)] for i in range(blocks)]
                    unpacked = unpack(packed)
                    step = T.Bind(wide(q_scale[tile, group, span(0)]))
                    for m in range(count):
                        row = first + m
                        fours = [
                            T.reinterpret("int32", codes[row, group, span(4 * i, 4)])
                            for i in range(2 * blocks)
                        ]
                        dot = wide(by.group(unpacked, fours, offset[row, group]))
                        factor = step * spread(scale[row, group])
                        store(sums, sums[m, span(0)] + dot * factor, m, span(0))
                _finish(out, sums, first, count, tile, c.rows, epilogue)

            each_row_block(length, by.q4_tokens, multiply)
    return k.function


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
