"""Attention kernels: all patches with all, and the decoder's with its sliding KV cache.

Both go over keys in tiles of 16, the lanes. Scores of a block of queries stand in a scratch
row; softmax and sums are float32.

The decoder's cache has a fixed number of slots, tiles of 16. The first ceil(pinned/16) tiles
hold the pinned tokens, token j in slot j. The rest is a ring of R slots: token j is in slot
(j - pinned) mod R of it. A query at index t sees key j if j <= t, and j < pinned or
j > t - (window - pinned); keys are stored rotated to their index, and the query comes rotated
twice, for the recent and for the pinned (see `runtime.reference.kv_cache`). The ring must hold
window - pinned slots and one chunk of queries, which are stored before they attend. Slots that
were never written must hold finite numbers: a weight of 0 does not hide a NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    lanes_of,
    local,
    prefetch,
    span,
    spread,
    store,
    typed,
    wide,
)
from convert.config import DecoderConfig

_MASKED = -1e30  # far below any score; its weight is exactly 0
_AHEAD = 4  # tiles between the keys or values that are used and those asked for from memory
_SUMS = 4  # at least, that grow side by side: one alone would wait for itself


@dataclass(frozen=True)
class Heads:
    """Where a tensor of tokens (L, columns) holds its heads: head h begins at first + h * dim."""

    columns: int
    first: int = 0


@dataclass(frozen=True)
class _Keys:
    """A run of key tiles: how to load its queries and keys, and what to do to its scores."""

    tiles: Expr
    first: Expr
    query: Callable[[Expr, Expr], Expr]  # (row, d) -> a scaled value
    key: Callable[[Expr, Expr], Expr]  # (tile, d) -> a vector over the keys
    mask: Callable[[Expr, Expr, Expr], Expr]  # (scores, tile, row) -> scores
    # (tile of the run) -> what asks, for each d, for a part of what will be read next
    fetch: Callable[[Expr], Callable[[Expr], None]] | None = None


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
        scratch = _Scratch(heads, block, tiles, head_dim)
        with T.parallel(0, heads) as head:
            turned = T.alloc_buffer((tiles, head_dim, LANES), "float32")
            with T.grid(tiles, head_dim, LANES) as (tile, d, lane):
                row = T.min(tile * LANES + lane, keys - 1)  # missing keys are masked below
                store(turned, k_rows[row, k.first + head * head_dim + d], tile, d, lane)
            # Rows of the packed tensor are far apart: each would cost a page of its own.
            near = T.alloc_buffer((tiles * LANES, head_dim), "float32")
            with T.serial(0, tiles * LANES) as slot:
                row = T.min(slot, keys - 1)
                for at, lanes in _parts(head_dim):
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

            run = _Keys(tiles, T.int64(0), query, lambda tile, d: turned[tile, d, span(0)], mask)

            def attend(first: Expr, count: int) -> None:
                _attend(scratch, head, [run], first, count, head_dim, value, out, head * head_dim)

            each_row_block(T.int64(queries), block, attend)
    return kern.function


def rotate_and_store(c: DecoderConfig) -> Expr:
    """Makes the kernel (qkv, angles, start, pinned, k_cache, v_cache) -> queries (L, 2, D).

    qkv (L, D + 2 kv) are the new tokens', the first one's index is start. angles (L, 4, head_dim /
    2): cos and sin of a token's index, then of its index as pinned keys see it. The queries are
    rotated for recent and for pinned keys, and scaled by head_dim ** -0.5; k_cache (heads, tiles,
    head_dim, 16) and v_cache (heads, tiles, 16, head_dim), float16, are written in place.
    """
    half, width, lanes = c.head_dim // 2, c.hidden_size, lanes_of(c.head_dim // 2)
    groups = c.num_attention_heads // c.num_key_value_heads
    with kernel("rotate_and_store") as k:
        rows, tiles = k.length("rows"), k.length("tiles")
        qkv = k.tensor("qkv", (rows, width + 2 * c.kv_dim))
        angles = k.tensor("angles", (rows, 4, half))
        start, pinned = k.integer("start"), k.integer("pinned")
        keys = k.tensor("keys", (c.num_key_value_heads, tiles, c.head_dim, LANES), "float16")
        values = k.tensor("values", (c.num_key_value_heads, tiles, LANES, c.head_dim), "float16")
        queries = k.tensor("queries", (rows, 2, width))
        pinned_tiles = T.Bind((pinned + LANES - 1) // LANES)
        ring = T.Bind((tiles - pinned_tiles) * LANES)
        scale = spread(T.float32(c.head_dim**-0.5), lanes)
        with T.parallel(0, c.num_key_value_heads) as head, T.serial(0, rows) as row:
            with T.grid(groups, 2, half // lanes) as (member, kind, i):
                at = T.Bind((head * groups + member) * c.head_dim + i * lanes)
                a, b = qkv[row, span(at, lanes)], qkv[row, span(at + half, lanes)]
                a, b = _rotate(a, b, angles, row, kind * 2, i * lanes, lanes)
                store(queries, a * scale, row, kind, span(at, lanes))
                store(queries, b * scale, row, kind, span(at + half, lanes))
            index = T.Bind(start + row)
            in_ring = pinned_tiles * LANES + T.floormod(T.max(index - pinned, 0), ring)
            slot = T.Bind(T.Select(index < pinned, index, in_ring))
            tile, lane = T.Bind(slot // LANES), T.Bind(slot % LANES)
            at = T.Bind(width + head * c.head_dim)
            with T.serial(0, half) as d:
                a, b = _rotate(qkv[row, at + d], qkv[row, at + half + d], angles, row, 0, d, 1)
                store(keys, T.cast(a, "float16"), head, tile, d, lane)
                store(keys, T.cast(b, "float16"), head, tile, half + d, lane)
            with T.serial(0, c.head_dim // lanes) as i:
                value = qkv[row, span(at + c.kv_dim + i * lanes, lanes)]
                value = T.cast(value, typed("float16", lanes))
                store(values, value, head, tile, lane, span(i * lanes, lanes))
    return k.function


def cached_attention(c: DecoderConfig, block: int) -> Expr:
    """Makes the kernel (queries, keys, values, start, window, pinned) -> (L, D), float32.

    queries (L, 2, D), keys and values as `rotate_and_store` left them, the L queries' own among
    them; start is the first query's index. `block` queries share a load of
    keys or values.
    """
    dim = c.head_dim
    with kernel("cached_attention") as k:
        rows, tiles = k.length("rows"), k.length("tiles")
        queries = k.tensor("queries", (rows, 2, c.hidden_size))
        keys = k.tensor("keys", (c.num_key_value_heads, tiles, dim, LANES), "float16")
        values = k.tensor("values", (c.num_key_value_heads, tiles, LANES, dim), "float16")
        start, window, pinned = (k.integer(name) for name in ("start", "window", "pinned"))
        out = k.tensor("out", (rows, c.hidden_size))
        pinned_tiles = T.Bind((pinned + LANES - 1) // LANES)
        ring = T.Bind((tiles - pinned_tiles) * LANES)
        total = T.Bind(start + rows)
        newest = T.Bind(
            T.cast(total - 1 - pinned, "int32")
        )  # place of the newest in the ring's row
        scratch = _Scratch(c.num_attention_heads, block, tiles, dim)
        with T.parallel(0, c.num_attention_heads) as head:
            kv_head = T.Bind(head // (c.num_attention_heads // c.num_key_value_heads))

            def key(tile: Expr, d: Expr) -> Expr:
                return wide(keys[kv_head, tile, d, span(0)])

            def value(slot: Expr, at: int, lanes: int) -> Expr:
                loaded = values[kv_head, slot // LANES, slot % LANES, span(at, lanes)]
                return wide(loaded, lanes)

            used_pinned = T.Bind((T.min(pinned, total) + LANES - 1) // LANES)
            used = T.Bind((T.min(T.max(total - pinned, 0), ring) + LANES - 1) // LANES)

            def fetch(before: Expr) -> Callable[[Expr], Callable[[Expr], None]]:
                """Asks for keys some tiles ahead, also the next head's, and for this tile's values.

                A processor's own prefetcher does not know where the next head begins.
                """

                def tile_at(place: Expr) -> Expr:
                    recent = pinned_tiles + place - used_pinned
                    return T.Bind(T.Select(place < used_pinned, place, recent))

                def of_tile(tile: Expr) -> Callable[[Expr], None]:
                    here, ahead = tile_at(before + tile), before + tile + _AHEAD
                    beyond = T.Bind(ahead - used_pinned - used)
                    next_head = T.min(kv_head + 1, c.num_key_value_heads - 1)
                    from_head = T.Bind(T.Select(beyond < 0, kv_head, next_head))
                    there = tile_at(T.Select(beyond < 0, ahead, beyond))

                    def of_part(d: Expr) -> None:
                        prefetch(keys[from_head, there, d, 0])
                        at = d * LANES
                        prefetch(values[kv_head, here, at // dim, at % dim])

                    return of_part

                return of_tile

            def query(kind: int) -> Callable[[Expr, Expr], Expr]:
                return lambda row, d: queries[row, kind, head * dim + d]

            def mask_pinned(scores: Expr, tile: Expr, row: Expr) -> Expr:
                visible = T.min(start + row, pinned - 1)
                return keep(scores, slots(tile) <= spread(T.cast(visible, "int32")))

            def mask_recent(scores: Expr, tile: Expr, row: Expr) -> Expr:
                # A slot holds the newest token whose place in the row of all recent tokens is
                # congruent to the slot: `age` places before the newest.
                size = T.cast(ring, "int32")
                age = spread(T.floormod(newest, size)) - slots(tile - pinned_tiles)
                age = T.Bind(T.Select(age < spread(T.int32(0)), age + spread(size), age))
                place = T.Bind(spread(newest) - age)
                last = T.Bind(T.cast(start + row - pinned, "int32"))
                first = T.max(last - T.cast(window - pinned, "int32") + 1, T.int32(0))
                return keep(scores, T.And(place <= spread(last), place >= spread(first)))

            first_run = _Keys(
                used_pinned, T.int64(0), query(1), key, mask_pinned, fetch(T.int64(0))
            )
            recent = _Keys(used, pinned_tiles, query(0), key, mask_recent, fetch(used_pinned))
            runs = [first_run, recent]

            def attend(first: Expr, count: int) -> None:
                _attend(scratch, head, runs, first, count, dim, value, out, head * dim)

            each_row_block(rows, block, attend)
    return k.function


class _Scratch:
    """Where each head's block of queries stands, and its scores: rows of its own.

    Memory that a head takes for itself costs more than a token's attention.
    """

    def __init__(self, heads: int, block: int, tiles: Expr, head_dim: int) -> None:
        self.block = block
        self.queries = T.alloc_buffer((heads * block, head_dim), "float32")
        self.scores = T.alloc_buffer((heads * block, tiles * LANES), "float32")


def _attend(
    scratch: _Scratch,
    head: Expr,
    runs: list[_Keys],
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

        def score(run: _Keys, start: Expr, tiles: int) -> None:
            pairs = [(m, tile) for m in range(count) for tile in range(tiles)]
            sums = local((count, tiles, LANES))
            for m, tile in pairs:
                store(sums, spread(T.float32(0)), m, tile, span(0))
            fetches = []
            if count == 1 and run.fetch is not None:
                fetches = [run.fetch(start + tile) for tile in range(tiles)]
            with T.serial(0, head_dim) as d:
                keys = [T.Bind(run.key(run.first + start + tile, d)) for tile in range(tiles)]
                for fetch in fetches:
                    fetch(d)
                for m, tile in pairs:
                    product = keys[tile] * spread(asked[own + m, d])
                    store(sums, sums[m, tile, span(0)] + product, m, tile, span(0))
            for m, tile in pairs:
                at = T.Bind(run.first + start + tile)
                masked = T.Bind(run.mask(sums[m, tile, span(0)], at, first + m))
                store(scores, masked, own + m, span(at * LANES))
                store(largest, T.max(largest[m, span(0)], masked), m, span(0))

        each_row_block(run.tiles, max(1, _SUMS // count), partial(score, run))
    factors = [_softmax(scores, own + m, largest, m, runs) for m in range(count)]
    parts = list(_parts(head_dim))
    together = max(1, _SUMS // count)
    for group in (parts[i : i + together] for i in range(0, len(parts), together)):
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


def _parts(width: int) -> Iterator[tuple[int, int]]:
    """Cuts a width into vectors (start, lanes): of 16 lanes, and for the rest of fewer."""
    at = 0
    while at < width:
        lanes = min(LANES, 1 << (width - at).bit_length() - 1)
        yield at, lanes
        at += lanes


def _softmax(scores: Expr, row: Expr, largest: Expr, m: int, runs: list[_Keys]) -> Expr:
    """Turns a row of scores, the largest in `largest[m]`, into weights; returns 1 / their sum."""
    highest, sums = local((LANES,)), local((LANES,))
    store(highest, largest[m, span(0)], span(0))
    top = T.Bind(fold(highest, T.max, LANES))
    store(sums, spread(T.float32(0)), span(0))
    for run in runs:
        with T.serial(0, run.tiles) as i:
            at = span((run.first + i) * LANES)
            score = T.Bind(scores[row, at])
            weight = exp(score - spread(top))
            weight = T.Select(score > spread(T.float32(_MASKED)), weight, spread(T.float32(0)))
            store(scores, weight, row, at)
            store(sums, sums[span(0)] + scores[row, at], span(0))
    return T.Bind(T.float32(1) / fold(sums, lambda a, b: a + b, LANES))


def _rotate(
    a: Expr, b: Expr, angles: Expr, row: Expr, kind: Expr, at: Expr, lanes: int
) -> tuple[Expr, Expr]:
    """Rotates the pairs (a, b) by angles[row, kind: kind + 2], cos and sin, from `at` on."""
    a, b = T.Bind(a), T.Bind(b)
    cos, sin = (T.Bind(angles[row, kind + i, span(at, lanes)]) for i in range(2))
    return T.Bind(a * cos - b * sin), T.Bind(b * cos + a * sin)


def slots(tile: Expr) -> Expr:
    """Returns the indices of a tile's slots, int32."""
    return T.ramp(T.cast(tile * LANES, "int32"), 1, LANES)


def keep(scores: Expr, condition: Expr) -> Expr:
    """Masks scores where a condition does not hold."""
    return T.Select(condition, scores, spread(T.float32(_MASKED)))
