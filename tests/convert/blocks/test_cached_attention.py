"""The kernels of the KV cache, alone, as every variant that runs here has them, against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm

from convert.blocks.cached_attention import cached_attention, rotate_and_store
from convert.bundle.kv_cache import FP16, INT8
from convert.checkpoint.config import DecoderConfig
from convert.engine.compile import Target, Variant
from tests.support.compare import Record, assert_close
from tests.support.processor import processor_features

ROUNDING = 4e-6  # float32 sums of some hundred products in another order
Array = np.ndarray
HERE = [  # the widest and the narrowest vectors
    variant
    for variant in (Target.load("host").variants[0], Target.load("android-x86_64").variants[-1])
    if set(variant.requires) <= processor_features()
]


def _config(heads: int, kv_heads: int, dim: int) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=8, hidden_size=heads * dim, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=heads, num_key_value_heads=kv_heads, rms_norm_eps=1e-5,
        rope_theta=1e4, scale_emb=1.0, scale_depth=1.0, dim_model_base=heads * dim,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip


class _Cache:
    """One layer's cache and its kernels."""

    def __init__(
        self, c: DecoderConfig, kv: str, variant: Variant, *, window: int, pinned: int, tiles: int
    ) -> None:
        self.c, self.window, self.pinned, self._length = c, window, pinned, 0
        heads, dim = c.num_key_value_heads, c.head_dim
        dtype = np.int8 if kv == INT8 else np.float16
        self.tensors = [np.zeros((heads, tiles, dim, 16), dtype)]
        self.tensors.append(np.zeros((heads, tiles, 16, dim), dtype))
        if kv == INT8:
            self.tensors += [np.zeros((heads, tiles, 16), np.float32) for _ in range(2)]
        self._tiles = tiles
        self._kernels = (rotate_and_store(c, kv), cached_attention(c, kv, 2))
        self._variant = variant
        self._compiled: list[Any] = [None, None]

    def store(self, qkv: Array, angles: Array) -> Array:
        """Stores tokens; returns their queries. angles (L, 4, head_dim / 2)."""
        queries = np.zeros((len(qkv), 2, self.c.hidden_size), np.float32)
        arrays = [qkv, angles, *self.tensors, queries]
        qkv_, angles_, *cache, queries_ = (tvm.runtime.tensor(x) for x in arrays)
        self._run(0, qkv_, angles_, self._length, self.pinned, *cache, queries_)
        self.tensors = [tensor.numpy() for tensor in cache]
        self._length += len(qkv)
        result: Array = queries_.numpy()
        return result

    def attend(self, queries: Array) -> Array:
        """Attends with the queries of the tokens that were stored last."""
        out = np.zeros((len(queries), self.c.hidden_size), np.float32)
        queries_, *cache, out_ = (tvm.runtime.tensor(x) for x in (queries, *self.tensors, out))
        start = self._length - len(queries)
        self._run(1, queries_, *cache, start, self.window, self.pinned, out_)
        result: Array = out_.numpy()
        return result

    def _run(self, kernel: int, *arguments: Any) -> None:
        if self._compiled[kernel] is None:
            function = self._kernels[kernel].with_attr("global_symbol", "main")
            module = tvm.IRModule({"main": function})
            target = tvm.target.Target(self._variant.tvm)
            self._compiled[kernel] = tvm.compile(module, target=target)["main"]
        self._compiled[kernel](*arguments)

    def stored(self, index: int) -> tuple[Array, Array]:
        """Returns a token's key and value (heads, head_dim), as the cache gives them back."""
        first = -(-self.pinned // 16) * 16
        ring = self._tiles * 16 - first
        slot = index if index < self.pinned else first + (index - self.pinned) % ring
        tile, lane = divmod(slot, 16)
        key, value = self.tensors[0][:, tile, :, lane], self.tensors[1][:, tile, lane]
        if len(self.tensors) == 2:
            return key.astype(np.float64), value.astype(np.float64)
        scales = [scale[:, tile, lane, None].astype(np.float64) for scale in self.tensors[2:]]
        return key * scales[0], value * scales[1]


def _normal(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def _angles(c: DecoderConfig, start: int, length: int, window: int) -> Array:
    index = np.arange(start, start + length)
    frequencies = c.rope_theta ** -(np.arange(0, c.head_dim, 2) / c.head_dim)
    both = [at[:, None] * frequencies for at in (index, np.minimum(index, window - 1))]
    return np.stack([f(a) for a in both for f in (np.cos, np.sin)], axis=1).astype(np.float32)


def _rotated(x: Array, angles: Array) -> Array:
    """Rotates heads (H, head_dim) by angles (2, head_dim / 2): cos and sin."""
    a, b = np.split(x.astype(np.float64), 2, axis=-1)
    cos, sin = angles
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _rounded(x: Array, kv: str) -> Array:
    """What a cache gives back for heads (H, head_dim)."""
    if kv == FP16:
        return x.astype(np.float16).astype(np.float64)
    scale = np.abs(x).max(-1, keepdims=True) / 127
    return np.rint(x / np.where(scale == 0, 1, scale)) * scale


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "kv"), [(6, 2, 10, FP16), (6, 2, 10, INT8), (2, 2, 72, INT8)]
)
@pytest.mark.parametrize("variant", HERE, ids=lambda variant: variant.products)
def test_a_conversation_that_slides(
    variant: Variant, heads: int, kv_heads: int, dim: int, kv: str, record_property: Record
) -> None:
    """Chunks of awkward lengths through a ring that is overwritten, one query alone at times."""
    c, window, pinned = _config(heads, kv_heads, dim), 21, 5
    cache = _Cache(c, kv, variant, window=window, pinned=pinned, tiles=4)
    at, kept = 0, []
    for length in (1, 7, 13, 1, 17, 20, 1):
        qkv = _normal(length, c.hidden_size + 2 * c.kv_dim) * 3
        angles = _angles(c, at, length, window)
        out = cache.attend(cache.store(qkv, angles))
        for row, turn in zip(qkv, angles, strict=True):
            key, value = np.split(row[c.hidden_size :].reshape(2 * kv_heads, dim), 2)
            kept.append((_rotated(key, turn[:2]), value))
        # What was stored is what should be, to a code or the last bit of float16.
        for index in range(max(0, at + length - 21), at + length):
            for stored, right in zip(cache.stored(index), kept[index], strict=True):
                step = np.abs(right).max(-1, keepdims=True) * (1 / 127 if kv == INT8 else 1e-3)
                assert (np.abs(stored - right) <= 0.51 * step + 1e-7).all()
        given_back = {
            i: cache.stored(i) for i in range(at + length) if _seen(i, at, window, pinned)
        }
        expected = np.zeros_like(out, dtype=np.float64)
        for t in range(length):
            expected[t] = _attention(c, qkv[t], angles[t], given_back, at + t, window, pinned)
        assert_close(f"{length} tokens at {at}", out, expected, ROUNDING, record_property)
        at += length


def _seen(key: int, query: int, window: int, pinned: int) -> bool:
    return key < pinned or key > query - (window - pinned)


def _attention(
    c: DecoderConfig,
    row: Array,
    angles: Array,
    kept: dict[int, tuple[Array, Array]],
    index: int,
    window: int,
    pinned: int,
) -> Array:
    """One query over what the cache holds, key by key."""
    heads, groups = c.num_attention_heads, c.num_attention_heads // c.num_key_value_heads
    query = row[: c.hidden_size].reshape(heads, c.head_dim)
    near, far = (_rotated(query, angles[i : i + 2]) * c.head_dim**-0.5 for i in (0, 2))
    seen = [j for j in kept if j <= index and _seen(j, index, window, pinned)]
    out = []
    for h in range(heads):
        scores = np.array(
            [(far if j < pinned else near)[h] @ kept[j][0][h // groups] for j in seen]
        )
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        out.append(weights @ np.array([kept[j][1][h // groups] for j in seen]))
    return np.concatenate(out)


@pytest.mark.parametrize("variant", HERE, ids=lambda variant: variant.products)
def test_codes_to_the_bit(variant: Variant) -> None:
    """Ties, zeros, the smallest and the largest numbers; a rotation by nothing changes none."""
    c = _config(2, 2, 64)
    cache = _Cache(c, INT8, variant, window=99, pinned=8, tiles=2)
    rows = _normal(6, c.hidden_size + 2 * c.kv_dim)
    rows[1, c.hidden_size :] = np.tile(np.arange(64) - 31.5, 4)  # -31.5 / 31.5 * 127: ties
    rows[2, c.hidden_size :] = 0
    rows[3, c.hidden_size :] *= 1e-30  # float16 could hold neither scale
    rows[4, c.hidden_size :] *= 1e30
    rows[5, c.hidden_size :] = np.tile(np.eye(1, 64, 7)[0] * -3, 4)
    angles = np.zeros((6, 4, 32), np.float32)
    angles[:, ::2] = 1
    cache.store(rows, angles)
    for index, row in enumerate(rows):
        heads = row[c.hidden_size :].reshape(4, 64)
        scale = np.abs(heads).max(-1) / np.float32(127)
        codes = np.rint(heads / np.where(scale == 0, np.float32(1), scale)[:, None])
        for part, stored in enumerate(
            (cache.tensors[0][:, 0, :, index], cache.tensors[1][:, 0, index])
        ):
            np.testing.assert_array_equal(stored, codes[2 * part : 2 * part + 2].astype(np.int8))
            found = cache.tensors[2 + part][:, 0, index]
            np.testing.assert_array_equal(found, scale[2 * part : 2 * part + 2])
