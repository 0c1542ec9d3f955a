"""Attention kernels: what they share, and the one of the vision encoder, without a mask.

Keys come in tiles of 16, the lanes. The scores of each query of a block are a row of the scratch;
softmax and sums are float32. The decoder's kernel is `convert.blocks.cached_attention`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tvm.script.ir_builder import tirx as T

from convert.blocks.maths import exp
from convert.blocks.tir import (
    LANES,
    Expr,
    each_row_block,
    fold,
    kernel,
    local,
    parts,
    span,
    spread,
    store,
)

_MASKED = -1e30  # far below any score; its weight is exactly 0
_SUMS = 4  # independent sums, at least: each addition waits for the one before in its sum


@dataclass(frozen=True)
class Heads:
    """Where a row of a (L, columns) tensor holds its heads: head h begins at first + h * dim."""

    columns: int
    first: int = 0


@dataclass(frozen=True)
class KeyTiles:
    """A run of key tiles: how its queries and keys are loaded, and its scores masked."""

    tiles: Expr
    first: Expr
    query: Callable[[Expr, Expr], Expr]  # (row, d) -> a scaled value
    key: Callable[[Expr, Expr], Expr]  # (tile, d) -> a vector over the keys
    mask: Callable[[Expr, Expr, Expr], Expr]  # (scores, tile, row) -> scores
    # (tile of the run) -> the function that prefetches, for each d, a part of what is read next
    fetch: Callable[[Expr], Callable[[Expr], None]] | None = None
    fetch_every: int = 1  # d from one prefetch to the next
    # (tile) -> factors of its keys' scores, and of its values' weights
    key_scale: Callable[[Expr], Expr] | None = None
    value_scale: Callable[[Expr], Expr] | None = None


def attention(heads: int, head_dim: int, q: Heads, k: Heads, v: Heads, *, block: int) -> Expr:
    """Makes the kernel (q, k, v) -> (queries, heads * head_dim), without a mask; float32.

    Args: block: queries that share a load of keys or values.
    """
    with kernel("attention") as kern:
        queries, keys = kern.length("queries"), kern.length("keys")
        tiles = (keys + (LANES - 1)) // LANES
        q_rows = kern.tensor("q", (queries, q.columns))
        k_rows, v_rows = kern.tensor("k", (keys, k.columns)), kern.tensor("v", (keys, v.columns))
        out = kern.tensor("out", (queries, heads * head_dim))
        scratch = Scratch(heads, block, tiles, head_dim)
        with T.parallel(0, heads) as head:
            turned = T.alloc_buffer((tiles, head_dim, LANES), "float32")
            with T.grid(tiles, head_dim, LANES) as (tile, d, lane):
                row = T.min(tile * LANES + lane, keys - 1)  # missing keys are masked below
                store(turned, k_rows[row, k.first + head * head_dim + d], tile, d, lane)
            # Rows of the packed tensor are far apart, each on a page of its own.
            near = T.alloc_buffer((tiles * LANES, head_dim), "float32")
            with T.serial(0, tiles * LANES) as slot:
                row = T.min(slot, keys - 1)
                for at, lanes in parts(head_dim):
                    part = v_rows[row, span(v.first + head * head_dim + at, lanes)]
                    store(near, part, slot, span(at, lanes))

            def mask(scores: Expr, tile: Expr, _row: Expr) -> Expr:
                return keep(scores, slots(tile) < spread(T.cast(keys, "int32")))

            def query(row: Expr, d: Expr) -> Expr:
                return q_rows[row, q.first + head * head_dim + d] * T.float32(head_dim**-0.5)

            def value(slot: Expr, at: int, lanes: int) -> Expr:
                return near[slot, span(at, lanes)]

            run = KeyTiles(tiles, T.int64(0), query, lambda tile, d: turned[tile, d, span(0)], mask)

            def attend_block(first: Expr, count: int) -> None:
                attend(scratch, head, [run], first, count, head_dim, value, out, head * head_dim)

            each_row_block(queries, block, attend_block)
    return kern.function


class Scratch:
    """Rows for each head's block of queries and their scores, allocated once for all heads.

    If each head allocated its own, that would cost more than a token's attention.
    """

    def __init__(self, heads: int, block: int, tiles: Expr, head_dim: int) -> None:
        self.block = block
        self.queries = T.alloc_buffer((heads * block, head_dim), "float32")
        self.scores = T.alloc_buffer((heads * block, tiles * LANES), "float32")


def attend(
    scratch: Scratch,
    head: Expr,
    runs: list[KeyTiles],
    first: Expr,
    count: int,
    head_dim: int,
    value: Callable[[Expr, int, int], Expr],
    out: Expr,
    column: Expr,
) -> None:
    """Attends with `count` queries from row `first` on: scores, softmax, weighted values."""
    own = T.Bind(head * scratch.block)
    largest = local((count, LANES))
    for m in range(count):
        store(largest, spread(T.float32(_MASKED)), m, span(0))
    for run in runs:
        with T.serial(0, head_dim) as d:
            for m in range(count):
                store(scratch.queries, run.query(first + m, d), own + m, d)
        score = partial(_score, scratch, own, largest, run, first, count, head_dim)
        each_row_block(run.tiles, max(1, _SUMS // count), score)
    factors = [_softmax(scratch.scores, own + m, largest, m, runs) for m in range(count)]
    columns = list(parts(head_dim))
    together = max(1, _SUMS // count)
    for group in (columns[i : i + together] for i in range(0, len(columns), together)):
        mixed = _mix(scratch, own, runs, group, count, value)
        for (at, lanes), sums in zip(group, mixed, strict=True):
            for m in range(count):
                result = sums[m, span(0, lanes)] * spread(factors[m], lanes)
                store(out, result, first + m, span(column + at, lanes))


def _score(
    scratch: Scratch,
    own: Expr,
    largest: Expr,
    run: KeyTiles,
    first: Expr,
    count: int,
    head_dim: int,
    start: Expr,
    tiles: int,
) -> None:
    """Stores the scores of a block of queries with some tiles of a run.

    Args:
        scratch: its queries are those of the block.
        own: the block's first row in the scratch.
        largest: (count, 16), raised to the scores.
        run: the keys.
        first: the block's first row among all queries.
        count: queries in the block.
        head_dim: of queries and keys.
        start: the first tile of the run.
        tiles: their number.
    """
    pairs = [(m, tile) for m in range(count) for tile in range(tiles)]
    sums = local((count, tiles, LANES))
    for m, tile in pairs:
        store(sums, spread(T.float32(0)), m, tile, span(0))
    fetches = []
    if count == 1 and run.fetch is not None:
        fetches = [run.fetch(start + tile) for tile in range(tiles)]
    every = run.fetch_every if fetches else 1
    with T.serial(0, head_dim // every) as part:
        for fetch in fetches:
            fetch(part * every)
        for d in (part * every + i for i in range(every)):
            keys = [T.Bind(run.key(run.first + start + tile, d)) for tile in range(tiles)]
            for m, tile in pairs:
                product = keys[tile] * spread(scratch.queries[own + m, d])
                store(sums, sums[m, tile, span(0)] + product, m, tile, span(0))
    for m, tile in pairs:
        at = T.Bind(run.first + start + tile)
        scored = sums[m, tile, span(0)]
        if run.key_scale is not None:
            scored = scored * run.key_scale(at)
        masked = T.Bind(run.mask(scored, at, first + m))
        store(scratch.scores, masked, own + m, span(at * LANES))
        store(largest, T.max(largest[m, span(0)], masked), m, span(0))


def _mix(
    scratch: Scratch,
    own: Expr,
    runs: list[KeyTiles],
    group: list[tuple[int, int]],
    count: int,
    value: Callable[[Expr, int, int], Expr],
) -> list[Expr]:
    """Sums weighted values; returns (count, lanes) for each vector (start, lanes) of a group.

    The weights stand in the scratch from row `own` on, one row per query.
    """
    mixed = [local((count, lanes)) for _, lanes in group]
    for (_, lanes), sums in zip(group, mixed, strict=True):
        for m in range(count):
            store(sums, spread(T.float32(0), lanes), m, span(0, lanes))
    for run in runs:
        with T.serial(0, run.tiles * LANES) as i:
            slot = T.Bind(run.first * LANES + i)
            for (at, lanes), sums in zip(group, mixed, strict=True):
                loaded = T.Bind(value(slot, at, lanes))
                for m in range(count):
                    weighted = loaded * spread(scratch.scores[own + m, slot], lanes)
                    store(sums, sums[m, span(0, lanes)] + weighted, m, span(0, lanes))
    return mixed


def _softmax(scores: Expr, row: Expr, largest: Expr, m: int, runs: list[KeyTiles]) -> Expr:
    """Turns a row of scores, the largest in `largest[m]`, into weights; returns 1 / their sum.

    Weights are stored multiplied by their values' scales.
    """
    highest, sums = local((LANES,)), local((LANES,))
    store(highest, largest[m, span(0)], span(0))
    top = T.Bind(fold(highest, T.max, LANES))
    store(sums, spread(T.float32(0)), span(0))
    for run in runs:
        with T.serial(0, run.tiles) as i:
            at = span((run.first + i) * LANES)
            score = T.Bind(scores[row, at])
            weight = exp(score - spread(top))
            shown = score > spread(T.float32(_MASKED))
            weight = T.Bind(T.Select(shown, weight, spread(T.float32(0))))
            store(sums, sums[span(0)] + weight, span(0))
            if run.value_scale is not None:
                weight = weight * run.value_scale(run.first + i)
            store(scores, weight, row, at)
    return T.Bind(T.float32(1) / fold(sums, lambda a, b: a + b, LANES))


def slots(tile: Expr) -> Expr:
    """Returns the indices of a tile's slots, int32."""
    return T.ramp(T.cast(tile * LANES, "int32"), 1, LANES)


def keep(scores: Expr, condition: Expr) -> Expr:
    """Masks scores where a condition does not hold."""
    return T.Select(condition, scores, spread(T.float32(_MASKED)))
