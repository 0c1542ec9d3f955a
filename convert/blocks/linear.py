"""Matrix products with tiled weights: x (L, K) times W (N, K) transposed, parallel over tiles.

The 16 rows of a tile are the lanes; a block of tokens shares each load of weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm.script.ir_builder import tirx as T

from convert.blocks.maths import gelu
from convert.blocks.products import Activations, MatrixProduct, Products
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

# Bytes from the weights that are used to those that are prefetched: what a busy memory delivers
# within its latency of 0.5 µs. The processor's own prefetcher stops at each page.
_AHEAD = 8192
# Pairs of tiles that one task computes for a block of tokens. Results are then written along rows;
# along columns, each would touch another page. But there must be tasks for all threads.
_RUN, _TASKS = 6, 12

Epilogue = Callable[[Expr, Expr, Expr, int], Expr]  # (value, row, columns, lanes) -> value
Results = Callable[[int, Expr, int], Expr]  # (a block's token, row of the tile, lanes) -> values


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A product, and what the same kernel does after it, in the order of the fields."""

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
                finish(out, in_rows(sums), first, count, tile, c.rows, epilogue)

            each_row_block(length, by.f16_tokens, multiply)
    return k.function


def linear_codes(c: Linear, size: int, by: MatrixProduct, blocks: int, dtype: str) -> Expr:
    """Makes the kernel (codes, scale, offset, q_weight, q_scale, [bias], [residual]) -> (L, N).

    The first three are from `rows.quantize`. q_weight (ceil(N/16), G, blocks, 64) of `dtype`,
    q_scale (ceil(N/16), G, 16) float16, G = ceil(K / size). A group's product is exact, whatever
    instructions compute it.
    """
    bits = 8 * blocks * 4 // size
    with kernel(f"linear_q{bits}_{c.rows}x{c.columns}") as k:
        length = k.length("rows")
        CodesProduct(k, c, size, by, blocks, dtype, length).multiply_all()
    return k.function


class CodesProduct:
    """The parameters of a kernel that multiplies codes, and the product."""

    def __init__(
        self,
        k: Kernel,
        c: Linear,
        size: int,
        by: MatrixProduct,
        blocks: int,
        dtype: str,
        length: Expr,
        packed: Callable[[Kernel, int], None] | None = None,
    ) -> None:
        """Adds the parameters; `length` is L, for the rest see `linear_codes`.

        `packed` adds others of so many groups, before the weights.
        """
        self.c, self._by, self._blocks, self.length = c, by, blocks, length
        self.groups, self._units = -(-c.columns // size), size // by.inputs
        stored = (tiles(c.rows), self.groups)
        self.codes = k.tensor("codes", (length, self.groups, size), "int8")
        self.scale = k.tensor("scale", (length, self.groups))
        self._offset = k.tensor("offset", (length, self.groups), "int32")
        if packed is not None:
            packed(k, self.groups)
        self.q_weight = k.tensor("q_weight", (*stored, blocks, 4 * TILE_ROWS), dtype)
        self.q_scale = k.tensor("q_scale", (*stored, TILE_ROWS), "float16")
        self.epilogue = _epilogue(k, c, length)
        self.out = k.tensor("out", (length, c.rows))

    def multiply_all(self) -> None:
        """Writes all results, parallel over runs of tiles."""
        by, count = self._by, tiles(self.c.rows)
        beside = min(by.tiles, count)
        run = 1 if beside == 1 else beside * max(min(count // beside // _TASKS, _RUN), 1)
        with T.parallel(0, -(-count // run)) as task:

            def multiply_run(first: Expr, tokens: int) -> None:
                if run == 1:
                    self._multiply(first, tokens, [task])
                    return
                some = beside if tokens > 1 else 1
                left = T.min(count - task * run, run)
                with T.serial(0, (left + some - 1) // some) as i:
                    # Where too few are left, tiles before them are computed again.
                    tile = T.Bind(T.min(task * run + i * some, count - some))
                    self._multiply(first, tokens, [tile + j for j in range(some)])

            each_row_block(self.length, by.tokens, multiply_run)

    def _multiply(self, first: Expr, count: int, at: list[Expr]) -> None:
        """Writes the results of `count` tokens from `first` on for the tiles `at`."""
        sums = [local_rows(count, T.float32(0)) for _ in at]
        with T.serial(0, self.groups) as group:
            if count == 1:  # bound by memory
                self._prefetch(at[0], group)
            multiply = self._multiply_unit if self._units == 1 else self._multiply_units
            multiply(sums, first, at, group)
        for of_tile, tile in zip(sums, at, strict=True):
            self.finish(in_rows(of_tile), first, count, tile)

    def finish(self, value: Results, first: Expr, count: int, tile: Expr) -> None:
        """Writes a tile's results of some tokens, after the epilogue."""
        finish(self.out, value, first, count, tile, self.c.rows, self.epilogue)

    def _prefetch(self, tile: Expr, group: Expr) -> None:
        ahead = group + _AHEAD // (self._blocks * 4 * TILE_ROWS)
        for i in range(self._blocks):
            prefetch(self.q_weight[tile, ahead, i, 0])
        prefetch(self.q_scale[tile, ahead, 0])

    def _multiply_unit(
        self, sums: list[list[Expr]], first: Expr, at: list[Expr], group: Expr
    ) -> None:
        """Adds the products of a group that is one unit."""
        offsets = self._offsets(sums, first, group)

        def multiply(part: Expr, rows: Expr) -> None:
            before = [spread(value, self._by.lanes) for value in offsets]
            dots = self._add_unit(before, first, at, group, 0, part)
            self._add_scaled(sums, dots, first, at, group, rows)

        self._each_part(multiply)

    def _multiply_units(
        self, sums: list[list[Expr]], first: Expr, at: list[Expr], group: Expr
    ) -> None:
        """Adds the products of a group of several units, whose int32 sums are kept between them."""
        offsets = self._offsets(sums, first, group)
        dots = local_rows(len(offsets), T.int32(0))
        for row, value in zip(dots, offsets, strict=True):
            store(row, spread(value), span(0))
        with T.serial(0, self._units) as unit:

            def multiply(part: Expr, rows: Expr) -> None:
                before = [row[rows] for row in dots]
                after = self._add_unit(before, first, at, group, unit, part)
                for row, value in zip(dots, after, strict=True):
                    store(row, value, rows)

            self._each_part(multiply)

        def add(_part: Expr, rows: Expr) -> None:
            self._add_scaled(sums, [row[rows] for row in dots], first, at, group, rows)

        self._each_part(add)

    def _offsets(self, sums: list[list[Expr]], first: Expr, group: Expr) -> list[Expr]:
        """Returns what a group's int32 sums begin with: each tile's tokens, one after the other."""
        return [self._offset[first + m, group] for m in range(len(sums[0]))] * len(sums)

    def _add_unit(
        self, before: list[Expr], first: Expr, at: list[Expr], group: Expr, unit: Expr, part: Expr
    ) -> list[Expr]:
        """Adds the products of a part of the tiles' rows with a unit of a group, tile by tile."""
        by, in_unit = self._by, self._blocks // self._units
        columns, start = span(part * 4 * by.lanes, 4 * by.lanes), unit * in_unit
        packed = [
            self.q_weight[tile, group, start + i, columns] for tile in at for i in range(in_unit)
        ]

        def activations(row: Expr) -> Activations:
            return lambda at, size: self.codes[row, group, span(unit * by.inputs + at, size)]

        tokens = [activations(first + m) for m in range(len(before) // len(at))]
        return by.unit(packed, tokens, before)

    def _add_scaled(
        self,
        sums: list[list[Expr]],
        dots: list[Expr],
        first: Expr,
        at: list[Expr],
        group: Expr,
        rows: Expr,
    ) -> None:
        """Adds a group's int32 sums of some rows of the tiles, times their scales."""
        count, lanes = len(sums[0]), self._by.lanes
        for i, tile in enumerate(at):
            step = T.Bind(wide(self.q_scale[tile, group, rows], lanes))
            for m in range(count):
                factor = step * spread(self.scale[first + m, group], lanes)
                value = wide(dots[i * count + m], lanes) * factor
                store(sums[i][m], sums[i][m][rows] + value, rows)

    def _each_part(self, body: Callable[[Expr, Expr], None]) -> None:
        """Calls body(part, rows) for each part of a tile, as many rows as the product has lanes.

        In a loop: compilers would interleave unrolled parts until they run out of registers.
        """
        lanes = self._by.lanes
        if lanes == LANES:
            body(T.int64(0), span(0))
            return
        with T.serial(0, LANES // lanes) as part:
            body(part, span(part * lanes, lanes))


def _epilogue(k: Kernel, c: Linear, length: Expr) -> Epilogue:
    """Adds the parameters after the weights; returns the function of a finished value."""
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


def in_rows(sums: list[Expr]) -> Results:
    """Returns the results that local vectors hold, one for each token."""
    return lambda m, at, lanes: sums[m][span(at, lanes)]


def finish(
    out: Expr, value: Results, first: Expr, count: int, tile: Expr, rows: int, epilogue: Epilogue
) -> None:
    """Writes a tile's columns; of the last tile, only those that exist."""

    def whole() -> None:
        for m in range(count):
            columns = span(tile * TILE_ROWS)
            finished = epilogue(value(m, T.int64(0), LANES), first + m, columns, LANES)
            store(out, finished, first + m, columns)

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
                store(out, epilogue(value(m, i, 1), first + m, column, 1), first + m, column)
