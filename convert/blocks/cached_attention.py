"""The decoder's attention over its sliding KV cache, and the kernel that writes the cache.

The cache has a fixed number of slots, in tiles of 16. The first ceil(pinned/16) tiles hold the
pinned tokens, token j in slot j. The rest is a ring of R slots: token j is in its slot
(j - pinned) mod R. A query at index t sees key j if j <= t, and j < pinned or
j > t - (window - pinned). Keys are stored rotated by their index; each query is stored twice,
rotated for recent keys and for pinned ones (see `runtime.reference.kv_cache`). The ring must hold
window - pinned slots and one chunk of queries, which are stored before they attend. Slots that were
never written must hold finite numbers and scales: a weight of 0 does not hide a NaN.
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

_AHEAD = 4  # tiles from the keys that are used to those that are prefetched
_LINE = 64  # bytes of a cache line


def rotate_and_store(c: DecoderConfig, kv: str) -> Expr:
    """Makes the kernel (qkv, angles, start, pinned, cache) -> queries (L, 2, D), float32.

    qkv (L, D + 2 kv) holds the new tokens; start is the first one's index. angles
    (L, 4, head_dim / 2): cos and sin for a token's index, then for its index relative to pinned
    keys. The queries are rotated for recent and for pinned keys, and scaled by head_dim ** -0.5.
    cache: the tensors of `kv_cache.cache_tensors`, written in place.
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
        pinned_tiles, ring = _cut_cache(pinned, tiles)
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

    queries (L, 2, D) and the cache's tensors are what `rotate_and_store` wrote, with the keys and
    values of the L queries themselves; start is the first query's index. `block` queries share a
    load of keys or values.
    """
    dim = c.head_dim
    with kernel("cached_attention") as k:
        rows, tiles = k.length("rows"), k.length("tiles")
        queries = k.tensor("queries", (rows, 2, c.hidden_size))
        cache = LayerCache(k, c, kv, tiles)
        start, window, pinned = (k.integer(name) for name in ("start", "window", "pinned"))
        out = k.tensor("out", (rows, c.hidden_size))
        visible = _Visible(start, window, pinned, rows, tiles)
        scratch = Scratch(c.num_attention_heads, block, tiles, dim)
        with T.parallel(0, c.num_attention_heads) as head:
            cached = _CachedHead(c, cache, head, visible)
            runs = cached.runs(queries)

            def attend_block(first: Expr, count: int) -> None:
                attend(scratch, head, runs, first, count, dim, cached.value, out, head * dim)

            each_row_block(rows, block, attend_block)
    return k.function


def _cut_cache(pinned: Expr, tiles: Expr) -> tuple[Expr, Expr]:
    """Returns how many tiles hold the pinned tokens, and how many slots the ring has."""
    pinned_tiles = T.Bind((pinned + LANES - 1) // LANES)
    return pinned_tiles, T.Bind((tiles - pinned_tiles) * LANES)


class _Visible:
    """Which slots of the cache a query sees."""

    def __init__(self, start: Expr, window: Expr, pinned: Expr, rows: Expr, tiles: Expr) -> None:
        """Takes the kernel's lengths and numbers; see `cached_attention`."""
        self._start, self._window, self._pinned = start, window, pinned
        self.pinned_tiles, self._ring = _cut_cache(pinned, tiles)
        self._total = T.Bind(start + rows)
        # The newest token's place among all that went into the ring.
        self._newest = T.Bind(T.cast(self._total - 1 - pinned, "int32"))

    def used_tiles(self) -> tuple[Expr, Expr]:
        """Returns how many tiles hold tokens: of the pinned ones, and of the ring."""
        pinned = T.Bind((T.min(self._pinned, self._total) + LANES - 1) // LANES)
        recent = T.min(T.max(self._total - self._pinned, 0), self._ring)
        return pinned, T.Bind((recent + LANES - 1) // LANES)

    def mask_pinned(self, scores: Expr, tile: Expr, row: Expr) -> Expr:
        """Masks pinned keys that come after the query of a row."""
        last = T.min(self._start + row, self._pinned - 1)
        return keep(scores, slots(tile) <= spread(T.cast(last, "int32")))

    def mask_recent(self, scores: Expr, tile: Expr, row: Expr) -> Expr:
        """Masks keys of the ring that come after the query of a row, or have left its window."""
        # A slot holds the newest token whose place is congruent to the slot: `age` places before
        # the newest of all.
        size = T.cast(self._ring, "int32")
        age = spread(T.floormod(self._newest, size)) - slots(tile - self.pinned_tiles)
        age = T.Bind(T.Select(age < spread(T.int32(0)), age + spread(size), age))
        place = T.Bind(spread(self._newest) - age)
        last = T.Bind(T.cast(self._start + row - self._pinned, "int32"))
        first = T.max(last - T.cast(self._window - self._pinned, "int32") + 1, T.int32(0))
        return keep(scores, T.And(place <= spread(last), place >= spread(first)))


class _CachedHead:
    """The cache as one query head reads it."""

    def __init__(self, c: DecoderConfig, cache: LayerCache, head: Expr, visible: _Visible) -> None:
        """Args: head: the query head; groups of them share a head of the cache."""
        self._c, self._cache, self._head, self._visible = c, cache, head, visible
        self._kv_head = T.Bind(head // (c.num_attention_heads // c.num_key_value_heads))
        self._pinned, self._recent = visible.used_tiles()

    def value(self, slot: Expr, at: int, lanes: int) -> Expr:
        """Loads a part of a slot's value."""
        return self._cache.value(self._kv_head, slot, at, lanes)

    def runs(self, queries: Expr) -> list[KeyTiles]:
        """Returns the pinned tiles and the ring's, each with the queries rotated for it."""
        cache, head, dim = self._cache, self._head, self._c.head_dim

        def query(kind: int) -> Callable[[Expr, Expr], Expr]:
            return lambda row, d: queries[row, kind, head * dim + d]

        line = _LINE // (LANES * cache.item_bytes)  # d whose keys share a cache line
        shared: dict[str, Any] = {
            "key": partial(cache.key, self._kv_head),
            "fetch_every": line if dim % line == 0 else 1,
        }
        if cache.has_scales:
            shared["key_scale"] = partial(cache.key_scale, self._kv_head)
            shared["value_scale"] = partial(cache.value_scale, self._kv_head)
        pinned = KeyTiles(
            tiles=self._pinned,
            first=T.int64(0),
            query=query(1),
            mask=self._visible.mask_pinned,
            fetch=partial(self._fetch, T.int64(0)),
            **shared,
        )
        recent = KeyTiles(
            tiles=self._recent,
            first=self._visible.pinned_tiles,
            query=query(0),
            mask=self._visible.mask_recent,
            fetch=partial(self._fetch, self._pinned),
            **shared,
        )
        return [pinned, recent]

    def _fetch(self, before: Expr, tile: Expr) -> Callable[[Expr], None]:
        """Prefetches this tile's values, and keys some tiles ahead or of the next head.

        The processor's own prefetcher does not know where the next head begins.

        Args:
            before: used tiles before the run.
            tile: of the run.
        """
        here, ahead = self._tile_at(before + tile), before + tile + _AHEAD
        beyond = T.Bind(ahead - self._pinned - self._recent)
        next_head = T.min(self._kv_head + 1, self._c.num_key_value_heads - 1)
        from_head = T.Bind(T.Select(beyond < 0, self._kv_head, next_head))
        there = self._tile_at(T.Select(beyond < 0, ahead, beyond))
        dim = self._c.head_dim

        def fetch_part(d: Expr) -> None:
            prefetch(self._cache.keys[from_head, there, d, 0])
            at = d * LANES
            prefetch(self._cache.values[self._kv_head, here, at // dim, at % dim])

        return fetch_part

    def _tile_at(self, place: Expr) -> Expr:
        """Returns the tile of a place among the used tiles."""
        recent = self._visible.pinned_tiles + place - self._pinned
        return T.Bind(T.Select(place < self._pinned, place, recent))


def _rotate(
    a: Expr, b: Expr, angles: Expr, row: Expr, kind: Expr, at: Expr, lanes: int
) -> tuple[Expr, Expr]:
    """Rotates the pairs (a, b) by angles[row, kind: kind + 2], cos and sin, from `at` on."""
    a, b = T.Bind(a), T.Bind(b)
    cos, sin = (T.Bind(angles[row, kind + i, span(at, lanes)]) for i in range(2))
    return T.Bind(a * cos - b * sin), T.Bind(b * cos + a * sin)
