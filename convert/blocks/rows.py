"""Kernels that work row by row: norms, sums, the gate of SwiGLU, patches, embedding rows."""

from __future__ import annotations

from collections.abc import Callable

from tvm.script.ir_builder import tirx as T

from convert.blocks.maths import silu
from convert.blocks.tir import (
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
from convert.config import VisionConfig
from quantize.layout import TILE_ROWS


def layer_norm(width: int, eps: float) -> Expr:
    """Makes the kernel (x (L, D), weight (D,), bias (D,)) -> (L, D), float32."""
    lanes = lanes_of(width)
    with kernel("layer_norm") as k:
        rows = k.length("rows")
        x, weight, bias = (
            k.tensor("x", (rows, width)),
            k.tensor("weight", (width,)),
            k.tensor("bias", (width,)),
        )
        out = k.tensor("out", (rows, width))
        with T.parallel(0, rows) as row:
            mean = T.Bind(_row_sum(width, lambda at: x[row, at]) / T.float32(width))

            def square(at: Expr) -> Expr:
                centred = T.Bind(x[row, at] - spread(mean, lanes))
                return centred * centred

            variance = _row_sum(width, square) / T.float32(width)
            factor = T.Bind(T.float32(1) / T.sqrt(variance + T.float32(eps)))
            with T.serial(0, width // lanes) as i:
                at = span(i * lanes, lanes)
                normed = (x[row, at] - spread(mean, lanes)) * spread(factor, lanes)
                store(out, normed * weight[at] + bias[at], row, at)
    return k.function


def rms_norm(width: int, eps: float, divisor: float = 1.0) -> Expr:
    """Makes the kernel (x (L, D), weight (D,) float16) -> (L, D), divided by `divisor`; float32."""
    lanes = lanes_of(width)
    with kernel("rms_norm") as k:
        rows = k.length("rows")
        x, weight = k.tensor("x", (rows, width)), k.tensor("weight", (width,), "float16")
        out = k.tensor("out", (rows, width))
        with T.parallel(0, rows) as row:
            mean = _row_sum(width, lambda at: x[row, at] * x[row, at]) / T.float32(width)
            factor = T.Bind(T.float32(1) / T.sqrt(mean + T.float32(eps)))
            with T.serial(0, width // lanes) as i:
                at = span(i * lanes, lanes)
                normed = x[row, at] * spread(factor, lanes) * wide(weight[at], lanes)
                if divisor != 1:
                    normed = normed / spread(T.float32(divisor), lanes)
                store(out, normed, row, at)
    return k.function


def add(width: int) -> Expr:
    """Makes the kernel (x (L, D), y (L, D)) -> (L, D), float32."""
    lanes = lanes_of(width)
    with kernel("add") as k:
        rows = k.length("rows")
        x, y, out = (k.tensor(name, (rows, width)) for name in ("x", "y", "out"))
        with T.parallel(0, rows) as row:
            with T.serial(0, width // lanes) as i:
                at = span(i * lanes, lanes)
                store(out, x[row, at] + y[row, at], row, at)
    return k.function


def gate(width: int) -> Expr:
    """Makes the kernel (x (L, 2D): gates, then values) -> silu(gates) * values (L, D), float32."""
    lanes = lanes_of(width)
    with kernel("gate") as k:
        rows = k.length("rows")
        x, out = k.tensor("x", (rows, 2 * width)), k.tensor("out", (rows, width))
        with T.parallel(0, rows) as row:
            with T.serial(0, width // lanes) as i:
                opened = silu(T.Bind(x[row, span(i * lanes, lanes)]), lanes)
                value = x[row, span(width + i * lanes, lanes)]
                store(out, opened * value, row, span(i * lanes, lanes))
    return k.function


def patches(c: VisionConfig) -> Expr:
    """Makes the kernel (pixels (3, S, S)) -> (P, 3 * p * p), a patch's values as (c, y, x)."""
    size = c.patch_size
    with kernel("patches") as k:
        pixels = k.tensor("pixels", (3, c.image_size, c.image_size))
        out = k.tensor("out", (c.num_patches, c.patch_dim))
        with T.parallel(0, c.num_patches) as patch:
            with T.grid(3, size, size) as (colour, y, x):
                at = (colour * size + y) * size + x
                value = pixels[colour, patch // c.grid * size + y, patch % c.grid * size + x]
                store(out, value, patch, at)
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
