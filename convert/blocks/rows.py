"""Kernels that work row by row: norms, the gate of SwiGLU, rounding, patches, embedding rows."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

from tvm.script.ir_builder import tirx as T

from convert.blocks.maths import int8_divisor, int8_step, silu
from convert.blocks.tir import (
    LANES,
    Expr,
    Kernel,
    fold,
    kernel,
    lanes_of,
    local,
    span,
    spread,
    store,
    wide,
)
from convert.checkpoint.config import VisionConfig
from quantize.layout import TILE_ROWS

Values = Callable[[Expr, int], Expr]  # (column, lanes) -> a vector of a row's values


@dataclass(frozen=True)
class RowSource:
    """Rows (L, K), float32, that a kernel computes where it needs them.

    Memory and a call are saved where one kernel alone reads them.
    """

    name: str
    width: int  # K
    # Adds its tensors, of L rows, to a kernel; returns what begins with a row.
    parameters: Callable[[Kernel, Expr], Callable[[Expr], Values]]


def given(width: int) -> RowSource:
    """Returns the rows of x (L, D) as they are."""

    def parameters(k: Kernel, length: Expr) -> Callable[[Expr], Values]:
        x = k.tensor("x", (length, width))
        return lambda row: lambda at, lanes: x[row, span(at, lanes)]

    return RowSource("", width, parameters)


def layer_norm(width: int, eps: float) -> RowSource:
    """Returns the normed rows of x (L, D) with weight (D,) and bias (D,), float32."""
    step = lanes_of(width)

    def parameters(k: Kernel, length: Expr) -> Callable[[Expr], Values]:
        x, weight, bias = (
            k.tensor("x", (length, width)),
            k.tensor("weight", (width,)),
            k.tensor("bias", (width,)),
        )

        def begin(row: Expr) -> Values:
            mean = T.Bind(_row_sum(width, lambda at: x[row, at]) / T.float32(width))

            def square(at: Expr) -> Expr:
                centred = T.Bind(x[row, at] - spread(mean, step))
                return centred * centred

            variance = _row_sum(width, square) / T.float32(width)
            factor = T.Bind(T.float32(1) / T.sqrt(variance + T.float32(eps)))

            def values(at: Expr, lanes: int) -> Expr:
                columns = span(at, lanes)
                normed = (x[row, columns] - spread(mean, lanes)) * spread(factor, lanes)
                return normed * weight[columns] + bias[columns]

            return values

        return begin

    return RowSource("layer_norm", width, parameters)


def rms_norm(width: int, eps: float, divisor: float = 1.0) -> RowSource:
    """Returns the normed rows of x (L, D) with weight (D,) float16, divided by `divisor`."""

    def parameters(k: Kernel, length: Expr) -> Callable[[Expr], Values]:
        x, weight = k.tensor("x", (length, width)), k.tensor("weight", (width,), "float16")

        def begin(row: Expr) -> Values:
            mean = _row_sum(width, lambda at: x[row, at] * x[row, at]) / T.float32(width)
            factor = T.Bind(T.float32(1) / T.sqrt(mean + T.float32(eps)))

            def values(at: Expr, lanes: int) -> Expr:
                columns = span(at, lanes)
                normed = x[row, columns] * spread(factor, lanes) * wide(weight[columns], lanes)
                return normed if divisor == 1 else normed / spread(T.float32(divisor), lanes)

            return values

        return begin

    return RowSource("rms_norm", width, parameters)


def gate(width: int) -> RowSource:
    """Returns silu(gates) * values (L, D) of x (L, 2D), which has the gates first."""

    def parameters(k: Kernel, length: Expr) -> Callable[[Expr], Values]:
        x = k.tensor("x", (length, 2 * width))

        def begin(row: Expr) -> Values:
            def values(at: Expr, lanes: int) -> Expr:
                opened = silu(T.Bind(x[row, span(at, lanes)]), lanes)
                return opened * x[row, span(width + at, lanes)]

            return values

        return begin

    return RowSource("gate", width, parameters)


def write(source: RowSource) -> Expr:
    """Makes the kernel (the source's tensors) -> (L, D), float32."""
    lanes = lanes_of(source.width)
    with kernel(source.name) as k:
        length = k.length("rows")
        begin = source.parameters(k, length)
        out = k.tensor("out", (length, source.width))
        with T.parallel(0, length) as row:
            values = begin(row)
            with T.serial(0, source.width // lanes) as i:
                store(out, values(i * lanes, lanes), row, span(i * lanes, lanes))
    return k.function


def quantize(source: RowSource, size: int, zero_point: int) -> Expr:
    """Makes the kernel (the source's tensors) -> codes, scale, offset: int8 activations.

    They are for `linear.linear_codes`. codes (L, G, size) int8, scale (L, G) float32,
    G = ceil(K / size); values that a last group lacks are 0. offset (L, G) int32: the codes' sum
    times minus the weights' zero point.
    """
    width = source.width
    groups, rest = -(-width // size), width % size
    with kernel("_".join(filter(None, (source.name, "quantize", str(width))))) as k:
        length = k.length("rows")
        begin = source.parameters(k, length)
        codes = k.tensor("codes", (length, groups, size), "int8")
        scale = k.tensor("scale", (length, groups))
        offset = k.tensor("offset", (length, groups), "int32")

        def group_of(row: Expr, group: Expr, values: list[Expr]) -> None:
            scratch = local((LANES,))
            largest = reduce(T.max, [T.max(v, spread(T.float32(0)) - v) for v in values])
            store(scratch, largest, span(0))
            step = int8_step(scratch)
            store(scale, step, row, group)
            divisor = int8_divisor(step)
            rounded = [T.Bind(T.nearbyint(v / spread(divisor))) for v in values]
            total = T.int32(0)
            if zero_point:
                store(scratch, reduce(operator.add, rounded), span(0))
                total = T.cast(fold(scratch, operator.add, LANES), "int32") * -zero_point
            store(offset, total, row, group)
            for i, part in enumerate(rounded):
                store(codes, T.cast(part, "int8x16"), row, group, span(i * LANES))

        parts = range(0, size, LANES)
        with T.parallel(0, length) as row:
            values = begin(row)
            with T.serial(0, width // size) as group:
                group_of(row, group, [T.Bind(values(group * size + i, LANES)) for i in parts])
            if rest:
                last = local((size,))
                for i in parts:
                    store(last, spread(T.float32(0)), span(i))
                with T.serial(0, rest) as i:
                    store(last, values(width - rest + i, 1), i)
                group_of(row, T.int64(groups - 1), [T.Bind(last[span(i)]) for i in parts])
    return k.function


def patches(c: VisionConfig) -> Expr:
    """Makes the kernel (pixels (3, H, W)) -> (P, 3 * p * p), a patch's values as (c, y, x).

    H and W must be multiples of p, and P = H * W / p^2: patches go row by row.
    """
    size = c.patch_size
    with kernel("patches") as k:
        height, width, count = k.length("height"), k.length("width"), k.length("rows")
        pixels = k.tensor("pixels", (3, height, width))
        out = k.tensor("out", (count, c.patch_dim))
        with T.parallel(0, count) as patch:
            columns = T.Bind(width // size)
            top, left = T.Bind(patch // columns * size), T.Bind(patch % columns * size)
            with T.grid(3, size, size) as (colour, y, x):
                value = pixels[colour, top + y, left + x]
                store(out, value, patch, (colour * size + y) * size + x)
    return k.function


def grid_sums(width: int) -> Expr:
    """Makes the kernel (columns (C, D), rows (R, D)) -> the sums of all pairs (C * R, D).

    In the order of a grid, row by row.
    """
    lanes = lanes_of(width)
    with kernel("grid_sums") as k:
        across, down, count = k.length("columns"), k.length("rows"), k.length("count")
        columns, rows = k.tensor("columns", (across, width)), k.tensor("rows", (down, width))
        out = k.tensor("out", (count, width))
        with T.parallel(0, count) as at:
            column, row = T.Bind(at % across), T.Bind(at // across)
            with T.serial(0, width // lanes) as i:
                part = span(i * lanes, lanes)
                store(out, columns[column, part] + rows[row, part], at, part)
    return k.function


def embedding_codes(
    rows: int, width: int, factor: float, size: int, zero_point: int | None
) -> Expr:
    """Makes the kernel (ids (L,) int32, q_weight, q_scale) -> rows times `factor` (L, D), float32.

    Codes are of 4 bits around a zero point, or int8 where there is none. The ids must be known to
    lie within the table.
    """
    groups, tiles = -(-width // size), -(-rows // TILE_ROWS)
    blocks, dtype = (size // 4, "int8") if zero_point is None else (size // 8, "uint8")
    with kernel("embedding_codes") as k:
        length = k.length("rows")
        ids = k.tensor("ids", (length,), "int32")
        q_weight = k.tensor("q_weight", (tiles, groups, blocks, 4 * TILE_ROWS), dtype)
        q_scale = k.tensor("q_scale", (tiles, groups, TILE_ROWS), "float16")

        def value(tile: Expr, lane: Expr, column: Expr) -> Expr:
            group, place = T.Bind(column // size), T.Bind(column % size)
            packed = q_weight[tile, group, place // 4 % blocks, lane * 4 + place % 4]
            code = T.cast(packed, "int32")
            if zero_point is not None:
                half = T.cast(place // (4 * blocks) * 4, "int32")
                code = T.bitwise_and(T.shift_right(code, half), 15) - zero_point
            return T.cast(code, "float32") * T.cast(q_scale[tile, group, lane], "float32")

        _gather(k, length, width, factor, ids, value)
    return k.function


def embedding_f16(rows: int, width: int, factor: float) -> Expr:
    """Makes the kernel (ids (L,) int32, weight) -> rows times `factor` (L, D), float32.

    weight (ceil(V/16), D, 16) float16. The ids must be known to lie within the table.
    """
    with kernel("embedding_f16") as k:
        length = k.length("rows")
        ids = k.tensor("ids", (length,), "int32")
        weight = k.tensor("weight", (-(-rows // TILE_ROWS), width, TILE_ROWS), "float16")

        def value(tile: Expr, lane: Expr, column: Expr) -> Expr:
            return T.cast(weight[tile, column, lane], "float32")

        _gather(k, length, width, factor, ids, value)
    return k.function


def _gather(
    k: Kernel,
    length: Expr,
    width: int,
    factor: float,
    ids: Expr,
    value: Callable[[Expr, Expr, Expr], Expr],
) -> None:
    """Writes value(tile, lane, column) * factor for every id and column."""
    out = k.tensor("out", (length, width))
    with T.parallel(0, length) as row:
        tile, lane = T.Bind(ids[row] // TILE_ROWS), T.Bind(ids[row] % TILE_ROWS)
        with T.serial(0, width) as column:
            store(out, value(tile, lane, column) * T.float32(factor), row, column)


def _row_sum(width: int, value: object) -> Expr:
    """Sums value(index vector) over a row, in up to 16 lanes that are added at the end."""
    assert callable(value)
    lanes = lanes_of(width)
    sums = local((lanes,))
    store(sums, spread(T.float32(0), lanes), span(0, lanes))
    with T.serial(0, width // lanes) as i:
        store(sums, sums[span(0, lanes)] + value(span(i * lanes, lanes)), span(0, lanes))
    return fold(sums, lambda a, b: a + b, lanes)
