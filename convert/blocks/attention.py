"""Attention kernels: what they share, and the one of all patches with all.

Keys come in tiles of 16, the lanes. Scores of a block of queries stand in a scratch row; softmax
and sums are float32. The decoder's is `convert.blocks.cached_attention`.
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
_SUMS = 4  # at least, that grow side by side: one alone would wait for itself


@dataclass(frozen=True)
class Heads:
    """Where a tensor of tokens (L, columns) holds its heads: head h begins at first + h * dim."""

    columns: int
    first: int = 0


@dataclass(frozen=True)
class KeyTiles:
    """A run of key tiles: how to load its queries and keys, and what to do to its scores."""

    tiles: Expr
    first: Expr
    query: Callable[[Expr, Expr], Expr]  # (row, d) -> a scaled value
    key: Callable[[Expr, Expr], Expr]  # (tile, d) -> a vector over the keys
    mask: Callable[[Expr, Expr, Expr], Expr]  # (scores, tile, row) -> scores
    # (tile of the run) -> what asks, for each d, for a part of what will be read next
    fetch: Callable[[Expr], Callable[[Expr], None]] | None = None
    fetch_every: int = 1  # d between two that ask
    # (tile) -> vectors over the keys, which scores, and weights for their values, are multiplied by
    key_scale: Callable[[Expr], Expr] | None = None
    value_scale: Callable[[Expr], Expr] | None = None


def attention(
    heads: int, head_dim: int, queries: int, keys: int, q: Heads, k: Heads, v: Heads, *, block: int
) -> Expr:
    """Makes the kernel (q, k, v) -> (queries, heads * head_dim), without a mask; float32.

    Args: block: queries that share a load of keys or values.
    """
    tiles = -(-keys // LANES)
    with kernel("attention") as kern:
        q_rows = kern.tensor("q", (queries, q.columns))
        k_rows, v_rows = kern.tensor("k", (keys, k.columns)), kern.tensor("v", (keys, v.columns))
        out = kern.tensor("out", (queries, heads * head_dim))
        scratch = Scratch(heads, block, tiles, head_dim)
        with T.parallel(0, heads) as head:
            turned = T.alloc_buffer((tiles, head_dim, LANES), "float32")
            with T.grid(tiles, head_dim, LANES) as (tile, d, lane):
                row = T.min(tile * LANES + lane, keys - 1)  # missing keys are masked below
                store(turned, k_rows[row, k.first + head * head_dim + d], tile, d, lane)
            # Rows of the packed tensor are far apart: each would cost a page of its own.
            near = T.alloc_buffer((tiles * LANES, head_dim), "float32")
            with T.serial(0, tiles * LANES) as slot:
                row = T.min(slot, keys - 1)
                for at, lanes in parts(head_dim):
                    part = v_rows[row, span(v.first + head * head_dim + at, lanes)]
                    store(near, part, slot, span(at, lanes))

            def mask(scores: Expr, tile: Expr, _row: Expr) -> Expr:
                return (
                    scores
                    if keys % LANES == 0
                    else keep(scores, slots(tile) < spread(T.int32(keys)))
                )

            def query(row: Expr, d: Expr) -> Expr:
                return q_rows[row, q.first + head * head_dim + d] * T.float32(head_dim**-0.5)

            def value(slot: Expr, at: int, lanes: int) -> Expr:
                return near[slot, span(at, lanes)]

            run = KeyTiles(tiles, T.int64(0), query, lambda tile, d: turned[tile, d, span(0)], mask)

            def attend_block(first: Expr, count: int) -> None:
                attend(scratch, head, [run], first, count, head_dim, value, out, head * head_dim)

            each_row_block(T.int64(queries), block, attend_block)
    return kern.function


class Scratch:
    """Where each head's block of queries stands, and its scores: rows of its own.

    Memory that a head takes for itself costs more than a token's attention.
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
    scores, asked, own = scratch.scores, scratch.queries, T.Bind(head * scratch.block)
    largest = local((count, LANES))
    for m in range(count):
        store(largest, spread(T.float32(_MASKED)), m, span(0))
    for run in runs:
        with T.serial(0, head_dim) as d:
            for m in range(count):
                store(asked, run.query(first + m, d), own + m, d)

        def score(run: KeyTiles, start: Expr, tiles: int) -> None:
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
                        product = keys[tile] * spread(asked[own + m, d])
                        store(sums, sums[m, tile, span(0)] + product, m, tile, span(0))
            for m, tile in pairs:
                at = T.Bind(run.first + start + tile)
                scored = sums[m, tile, span(0)]
                if run.key_scale is not None:
                    scored = scored * run.key_scale(at)
                masked = T.Bind(run.mask(scored, at, first + m))
                store(scores, masked, own + m, span(at * LANES))
                store(largest, T.max(largest[m, span(0)], masked), m, span(0))

        each_row_block(run.tiles, max(1, _SUMS // count), partial(score, run))
    factors = [_softmax(scores, own + m, largest, m, runs) for m in range(count)]
    columns = list(parts(head_dim))
    together = max(1, _SUMS // count)
    for group in (columns[i : i + together] for i in range(0, len(columns), together)):
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
                        weighted = loaded * spread(scores[own + m, slot], lanes)
                        store(sums, sums[m, span(0, lanes)] + weighted, m, span(0, lanes))
        for (at, lanes), sums in zip(group, mixed, strict=True):
            for m in range(count):
                result = sums[m, span(0, lanes)] * spread(factors[m], lanes)
                store(out, result, first + m, span(column + at, lanes))


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
