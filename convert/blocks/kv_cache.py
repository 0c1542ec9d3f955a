"""A decoder layer's KV cache as kernels see it: float16, or int8 codes with scales.

Slots come in tiles of 16, the lanes. A vector of keys holds one element of 16 keys; a vector of
values holds 16 elements of one value. In int8, every token has one float32 scale for each head's
key and one for its value, max|x| / 127. Scores are multiplied by the keys' scales, and weights by
the values' scales, so that inner loops only widen codes. Keys are rotated before they are rounded.
"""

from __future__ import annotations

from tvm.script.ir_builder import tirx as T

from convert.blocks.maths import int8_divisor, int8_step
from convert.blocks.tir import (
    LANES,
    Expr,
    Kernel,
    lanes_of,
    local,
    span,
    spread,
    store,
    typed,
    wide,
)
from convert.bundle.kv_cache import INT8
from convert.checkpoint.config import DecoderConfig

CacheTensor = tuple[str, tuple[Expr, ...], str]  # name, shape, dtype


def cache_tensors(c: DecoderConfig, kv: str, tiles: Expr) -> list[CacheTensor]:
    """Returns the tensors of a layer's cache, in the order of its kernels' arguments.

    keys (heads, tiles, head_dim, 16), values (heads, tiles, 16, head_dim); in int8 then
    key_scales and value_scales (heads, tiles, 16) float32.

    Args:
        c: the decoder.
        kv: a key of `convert.bundle.kv_cache.KV_FORMATS`.
        tiles: of slots.
    """
    heads, dtype = c.num_key_value_heads, "int8" if kv == INT8 else "float16"
    tensors: list[CacheTensor] = [
        ("keys", (heads, tiles, c.head_dim, LANES), dtype),
        ("values", (heads, tiles, LANES, c.head_dim), dtype),
    ]
    if kv == INT8:
        scales = (heads, tiles, LANES)
        tensors += [(name, scales, "float32") for name in ("key_scales", "value_scales")]
    return tensors


class LayerCache:
    """The cache of a layer among a kernel's parameters."""

    def __init__(self, k: Kernel, c: DecoderConfig, kv: str, tiles: Expr) -> None:
        """Adds the parameters; args as in `cache_tensors`."""
        self._dim, self.has_scales = c.head_dim, kv == INT8
        layout = cache_tensors(c, kv, tiles)
        self.keys, self.values, *self._scales = (k.tensor(*one) for one in layout)
        self._dtype, self.item_bytes = ("int8", 1) if self.has_scales else ("float16", 2)

    def store(self, head: Expr, slot: Expr, key: Expr, value: Expr) -> None:
        """Writes a token's key, rotated, and value, both local buffers (head_dim,) float32."""
        tile, lane, lanes = T.Bind(slot // LANES), T.Bind(slot % LANES), lanes_of(self._dim)
        if self.has_scales:
            for row, scales in zip((key, value), self._scales, strict=True):
                _round(row, self._dim, scales, (head, tile, lane))
        with T.serial(0, self._dim) as d:
            store(self.keys, T.cast(key[d], self._dtype), head, tile, d, lane)
        with T.serial(0, self._dim // lanes) as i:
            at = span(i * lanes, lanes)
            store(self.values, T.cast(value[at], typed(self._dtype, lanes)), head, tile, lane, at)

    def key(self, head: Expr, tile: Expr, d: Expr) -> Expr:
        """Returns element d of a tile's keys, without their scales, float32."""
        return wide(self.keys[head, tile, d, span(0)])

    def value(self, head: Expr, slot: Expr, at: int, lanes: int) -> Expr:
        """Returns `lanes` elements of a slot's value from `at` on, without its scale, float32."""
        return wide(self.values[head, slot // LANES, slot % LANES, span(at, lanes)], lanes)

    def key_scale(self, head: Expr, tile: Expr) -> Expr:
        """Returns the scales of a tile's keys."""
        return self._scales[0][head, tile, span(0)]

    def value_scale(self, head: Expr, tile: Expr) -> Expr:
        """Returns the scales of a tile's values."""
        return self._scales[1][head, tile, span(0)]


def _round(row: Expr, dim: int, scales: Expr, at: tuple[Expr, ...]) -> None:
    """Rounds a local row (dim,) to integer codes in place, and stores its scale.

    Rounds as `quantize.activations` does; a row of zeros has the scale 0.
    """
    lanes = lanes_of(dim)
    largest = local((lanes,))
    store(largest, spread(T.float32(0), lanes), span(0, lanes))
    with T.serial(0, dim // lanes) as i:
        x = T.Bind(row[span(i * lanes, lanes)])
        magnitude = T.max(x, spread(T.float32(0), lanes) - x)
        store(largest, T.max(largest[span(0, lanes)], magnitude), span(0, lanes))
    scale = int8_step(largest, lanes)
    store(scales, scale, *at)
    divisor = int8_divisor(scale)
    with T.serial(0, dim // lanes) as i:
        part = span(i * lanes, lanes)
        store(row, T.nearbyint(row[part] / spread(divisor, lanes)), part)
