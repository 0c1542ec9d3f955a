"""The decoder's attention over its sliding KV cache, and what writes the cache.

The cache has a fixed number of slots, tiles of 16. The first ceil(pinned/16) tiles hold the pinned
tokens, token j in slot j. The rest is a ring of R slots: token j is in slot (j - pinned) mod R of
it. A query at index t sees key j if j <= t, and j < pinned or j > t - (window - pinned); keys are
stored rotated to their index, and the query comes rotated twice, for the recent and for the pinned
(see `runtime.reference.kv_cache`). The ring must hold window - pinned slots and one chunk of
queries, which are stored before they attend. Slots that were never written must hold finite
numbers and scales: a weight of 0 does not hide a NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tvm.script.ir_builder import tirx as T

from convert.blocks.attention import KeyTiles, Scratch, attend, keep, slots
from convert.blocks.kv_cache import LayerCache
from convert.blocks.tir import (
    LANES,
    Expr,
    each_row_block,
    kernel,
    lanes_of,
    local,
    prefetch,
    span,
    spread,
    store,
)
from convert.checkpoint.config import DecoderConfig

_AHEAD = 4  # tiles between the keys or values that are used and those asked for from memory
_LINE = 64  # bytes that come from memory at a time


def rotate_and_store(c: DecoderConfig, kv: str) -> Expr:
    """Makes the kernel (qkv, angles, start, pinned, cache) -> queries (L, 2, D), float32.

    qkv (L, D + 2 kv) are the new tokens', the first one's index is start. angles (L, 4, head_dim /
    2): cos and sin of a token's index, then of its index as pinned keys see it. The queries are
    rotated for recent and for pinned keys, and scaled by head_dim ** -0.5. cache: the tensors of
    `kv_cache.cache_tensors`, written in place.
    """
    half, width, lanes = c.head_dim // 2, c.hidden_size, lanes_of(c.head_dim // 2)
    groups = c.num_attention_heads // c.num_key_value_heads
    with kernel("rotate_and_store") as k:
        rows, tiles = k.length("rows"), k.length("tiles")
        qkv = k.tensor("qkv", (rows, width + 2 * c.kv_dim))
        angles = k.tensor("angles", (rows, 4, half))
        start, pinned = k.integer("start"), k.integer("pinned")
        cache = LayerCache(k, c, kv, tiles)
        queries = k.tensor("queries", (rows, 2, width))
        pinned_tiles = T.Bind((pinned + LANES - 1) // LANES)
        ring = T.Bind((tiles - pinned_tiles) * LANES)
        scale = spread(T.float32(c.head_dim**-0.5), lanes)
        with T.parallel(0, c.num_key_value_heads) as head, T.serial(0, rows) as row:

            def rotated(first: Expr, kind: Expr, at: Expr) -> tuple[Expr, Expr]:
                a, b = (qkv[row, span(first + at + i, lanes)] for i in (0, half))
                return _rotate(a, b, angles, row, kind * 2, at, lanes)

            with T.grid(groups, 2, half // lanes) as (member, kind, i):
                first, at = T.Bind((head * groups + member) * c.head_dim), i * lanes
                a, b = rotated(first, kind, at)
                store(queries, a * scale, row, kind, span(first + at, lanes))
                store(queries, b * scale, row, kind, span(first + at + half, lanes))
            key, value = local((c.head_dim,)), local((c.head_dim,))
            first = T.Bind(width + head * c.head_dim)
            with T.serial(0, half // lanes) as i:
                a, b = rotated(first, 0, i * lanes)
                store(key, a, span(i * lanes, lanes))
                store(key, b, span(i * lanes + half, lanes))
            with T.serial(0, c.head_dim // lanes) as i:
                part = qkv[row, span(first + c.kv_dim + i * lanes, lanes)]
                store(value, part, span(i * lanes, lanes))
            index = T.Bind(start + row)
            in_ring = pinned_tiles * LANES + T.floormod(T.max(index - pinned, 0), ring)
            slot = T.Bind(T.Select(index < pinned, index, in_ring))
            cache.store(head, slot, key, value)
    return k.function


def cached_attention(c: DecoderConfig, kv: str, block: int) -> Expr:
    """Makes the kernel (queries, cache, start, window, pinned) -> (L, D), float32.

    queries (L, 2, D) and the cache's tensors as `rotate_and_store` left them, the L queries' own
    keys and values among them; start is the first query's index. `block` queries share a load of
    keys or values.
    """
    dim = c.head_dim
    with kernel("cached_attention") as k:
        rows, tiles = k.length("rows"), k.length("tiles")
        queries = k.tensor("queries", (rows, 2, c.hidden_size))
        cache = LayerCache(k, c, kv, tiles)
        start, window, pinned = (k.integer(name) for name in ("start", "window", "pinned"))
        out = k.tensor("out", (rows, c.hidden_size))
        pinned_tiles = T.Bind((pinned + LANES - 1) // LANES)
        ring = T.Bind((tiles - pinned_tiles) * LANES)
        total = T.Bind(start + rows)
        newest = T.Bind(
            T.cast(total - 1 - pinned, "int32")
        )  # place of the newest in the ring's row
        scratch = Scratch(c.num_attention_heads, block, tiles, dim)
        with T.parallel(0, c.num_attention_heads) as head:
            kv_head = T.Bind(head // (c.num_attention_heads // c.num_key_value_heads))

            def key(tile: Expr, d: Expr) -> Expr:
                return cache.key(kv_head, tile, d)

            def value(slot: Expr, at: int, lanes: int) -> Expr:
                return cache.value(kv_head, slot, at, lanes)

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
                        prefetch(cache.keys[from_head, there, d, 0])
                        at = d * LANES
                        prefetch(cache.values[kv_head, here, at // dim, at % dim])

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

            line = _LINE // (LANES * cache.item_bytes)  # how many d have their keys in one
            shared: dict[str, Any] = {"key": key, "fetch_every": line if dim % line == 0 else 1}
            if cache.has_scales:
                shared["key_scale"] = partial(cache.key_scale, kv_head)
                shared["value_scale"] = partial(cache.value_scale, kv_head)
            runs = [
                KeyTiles(
                    tiles=used_pinned,
                    first=T.int64(0),
                    query=query(1),
                    mask=mask_pinned,
                    fetch=fetch(T.int64(0)),
                    **shared,
                ),
                KeyTiles(
                    tiles=used,
                    first=pinned_tiles,
                    query=query(0),
                    mask=mask_recent,
                    fetch=fetch(used_pinned),
                    **shared,
                ),
            ]

            def attend_block(first: Expr, count: int) -> None:
                attend(scratch, head, runs, first, count, dim, value, out, head * dim)

            each_row_block(rows, block, attend_block)
    return k.function


def _rotate(
    a: Expr, b: Expr, angles: Expr, row: Expr, kind: Expr, at: Expr, lanes: int
) -> tuple[Expr, Expr]:
    """Rotates the pairs (a, b) by angles[row, kind: kind + 2], cos and sin, from `at` on."""
    a, b = T.Bind(a), T.Bind(b)
    cos, sin = (T.Bind(angles[row, kind + i, span(at, lanes)]) for i in range(2))
    return T.Bind(a * cos - b * sin), T.Bind(b * cos + a * sin)
