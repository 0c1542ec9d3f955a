"""Matrix products with tiled weights: x (L, K) times W (N, K) transposed, parallel over tiles.

A tile's 16 rows are the lanes; a block of tokens shares each load of the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm.script.ir_builder import tirx as T

from convert.blocks.maths import gelu
from convert.blocks.products import Activations, Product, Products
from convert.blocks.tir import (
    LANES,
    Expr,
    Kernel,
    each_row_block,
    kernel,
    local_rows,
    prefetch,
    span,
    spread,
    store,
    wide,
)
from quantize.layout import TILE_ROWS, tiles

# Bytes between the weights that are used and those that are asked for from memory: what arrives
# in the 0.5 µs that a busy memory takes. The processor's own prefetcher ends at each page.
_AHEAD = 8192
# Pairs of tiles that a block of tokens goes through in one task. Results then fill rows of memory
# instead of columns, which cost a page each; but there must be tasks for all threads.
_RUN, _TASKS = 6, 12

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
    with kernel(f"linear_f16_{c.rows}x{c.columns}") as k:
        length = k.length("rows")
        x = k.tensor("x", (length, c.columns))
        weight = k.tensor("weight", (tiles(c.rows), c.columns, TILE_ROWS), "float16")
        epilogue = _epilogue(k, c, length)
        out = k.tensor("out", (length, c.rows))
        with T.parallel(0, tiles(c.rows)) as tile:

            def multiply(first: Expr, count: int) -> None:
                sums = local_rows(count, T.float32(0))
                with T.serial(0, c.columns) as i:
                    w = T.Bind(wide(weight[tile, i, span(0)]))
                    for m in range(count):
                        store(sums[m], sums[m][span(0)] + w * spread(x[first + m, i]), span(0))
                _finish(out, sums, first, count, tile, c.rows, epilogue)

            each_row_block(length, by.f16_tokens, multiply)
    return k.function


def linear_codes(c: Linear, size: int, by: Product, blocks: int, dtype: str) -> Expr:
    """Makes the kernel (codes, scale, offset, q_weight, q_scale, [bias], [residual]) -> (L, N).

    The first three are from `rows.quantize`. q_weight (ceil(N/16), G, blocks, 64) of `dtype`,
    q_scale (ceil(N/16), G, 16) float16, G = ceil(K / size). A group's product is exact, whatever
    instructions compute it.
    """
    groups, units = -(-c.columns // size), size // by.inputs
    in_unit = blocks // units
    ahead = _AHEAD // (blocks * 4 * TILE_ROWS)
    bits = 8 * blocks * 4 // size
    with kernel(f"linear_q{bits}_{c.rows}x{c.columns}") as k:
        length = k.length("rows")
        codes = k.tensor("codes", (length, groups, size), "int8")
        scale = k.tensor("scale", (length, groups))
        offset = k.tensor("offset", (length, groups), "int32")
        q_weight = k.tensor("q_weight", (tiles(c.rows), groups, blocks, 4 * TILE_ROWS), dtype)
        q_scale = k.tensor("q_scale", (tiles(c.rows), groups, TILE_ROWS), "float16")
        epilogue = _epilogue(k, c, length)
        out = k.tensor("out", (length, c.rows))

        lanes = by.lanes
        beside = min(by.tiles, tiles(c.rows))
        run = 1 if beside == 1 else beside * max(min(tiles(c.rows) // beside // _TASKS, _RUN), 1)

        def add_unit(
            first: Expr, at: list[Expr], group: Expr, unit: Expr, part: Expr, before: list[Expr]
        ) -> list[Expr]:
            """Adds the products of some rows of a group's unit, tile after tile."""
            columns, start = span(part * 4 * lanes, 4 * lanes), unit * in_unit
            packed = [q_weight[t, group, start + i, columns] for t in at for i in range(in_unit)]

            def activations(row: Expr) -> Activations:
                return lambda at, size: codes[row, group, span(unit * by.inputs + at, size)]

            tokens = [activations(first + m) for m in range(len(before) // len(at))]
            return by.unit(packed, tokens, before)

        def each_part(body: Callable[[Expr, Expr], None]) -> None:
            """Calls body(part, rows) for the parts of a tile that a product has at a time.

            In a loop: compilers would mix unrolled parts until no register is left.
            """
            if lanes == LANES:
                body(T.int64(0), span(0))
                return
            with T.serial(0, LANES // lanes) as part:
                body(part, span(part * lanes, lanes))

        def multiply(first: Expr, count: int, at: list[Expr]) -> None:
            sums = [local_rows(count, T.float32(0)) for _ in at]
            with T.serial(0, groups) as group:
                if count == 1:  # bound by memory
                    for i in range(blocks):
                        prefetch(q_weight[at[0], group + ahead, i, 0])
                    prefetch(q_scale[at[0], group + ahead, 0])

                def finish(rows: Expr, dots: list[Expr]) -> None:
                    for i, t in enumerate(at):
                        step = T.Bind(wide(q_scale[t, group, rows], lanes))
                        for m in range(count):
                            factor = step * spread(scale[first + m, group], lanes)
                            value = wide(dots[i * count + m], lanes) * factor
                            store(sums[i][m], sums[i][m][rows] + value, rows)

                offsets = [offset[first + m, group] for m in range(count)] * len(at)
                if units == 1:

                    def whole(part: Expr, rows: Expr) -> None:
                        before = [spread(value, lanes) for value in offsets]
                        finish(rows, add_unit(first, at, group, 0, part, before))

                    each_part(whole)
                else:
                    words = local_rows(count * len(at), T.int32(0))
                    for row, value in zip(words, offsets, strict=True):
                        store(row, spread(value), span(0))
                    with T.serial(0, units) as unit:

                        def one(part: Expr, rows: Expr) -> None:
                            before = [row[rows] for row in words]
                            after = add_unit(first, at, group, unit, part, before)
                            for row, value in zip(words, after, strict=True):
                                store(row, value, rows)

                        each_part(one)
                    each_part(lambda _, rows: finish(rows, [row[rows] for row in words]))
            for of_tile, t in zip(sums, at, strict=True):
                _finish(out, of_tile, first, count, t, c.rows, epilogue)

        with T.parallel(0, -(-tiles(c.rows) // run)) as task:

            def of_run(first: Expr, count: int) -> None:
                if run == 1:
                    multiply(first, count, [task])
                    return
                some = beside if count > 1 else 1
                left = T.min(tiles(c.rows) - task * run, run)
                with T.serial(0, (left + some - 1) // some) as i:
                    # Where the last has none beside it, the one before is computed again.
                    tile = T.Bind(T.min(task * run + i * some, tiles(c.rows) - some))
                    multiply(first, count, [tile + j for j in range(some)])

            each_row_block(length, by.tokens, of_run)
    return k.function


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
    out: Expr, sums: list[Expr], first: Expr, count: int, tile: Expr, rows: int, epilogue: Epilogue
) -> None:
    """Writes a tile's columns; of the last tile only those that exist."""

    def whole() -> None:
        for m in range(count):
            columns = span(tile * TILE_ROWS)
            store(out, epilogue(sums[m][span(0)], first + m, columns, LANES), first + m, columns)

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
                store(out, epilogue(sums[m][i], first + m, column, 1), first + m, column)
