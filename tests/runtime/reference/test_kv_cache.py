"""The sliding window against StreamingLLM written down plainly: one token at a time, in numpy.

There, keys are kept unrotated and every step rotates each kept key by its rank in the cache. The
reference instead stores keys rotated once and rotates the query twice; both must agree.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from convert.checkpoint.config import CONFIGS, DecoderConfig, ModelConfig
from runtime.inputs.prompt import PromptError
from runtime.reference.decoder import Decoder
from runtime.reference.kv_cache import KVCache
from tests.support.compare import Record, assert_close, randomize

# Float32 against float64, through all layers; measured 4e-7.
FLOAT32_SUMS = 5e-6


def _config() -> DecoderConfig:
    demo = ModelConfig.load(CONFIGS / "demo" / "config.json").decoder
    return replace(
        demo,
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=3,
        vocab_size=50,
    )


def _decoder() -> Decoder:
    decoder = Decoder(_config()).eval()
    randomize(decoder)
    return decoder


def _embeds(decoder: Decoder, length: int, seed: int = 1) -> Tensor:
    ids = torch.randint(decoder.c.vocab_size, (1, length), generator=torch.manual_seed(seed))
    return decoder.embed(ids)


class StreamingDecoder:
    """The decoder with a StreamingLLM cache, in float64, one token a step."""

    def __init__(self, decoder: Decoder, window: int, pinned: int) -> None:
        self.c, self.window, self.pinned = decoder.c, window, pinned
        self.w = {name: t.double().numpy() for name, t in decoder.state_dict().items()}
        self.kept: list[list[tuple[np.ndarray, np.ndarray]]] = [
            [] for _ in range(self.c.num_hidden_layers)
        ]

    def step(self, x: np.ndarray) -> np.ndarray:
        scale = self.c.scale_depth / np.sqrt(self.c.num_hidden_layers)
        for i, kept in enumerate(self.kept):
            at = f"model.layers.{i}"
            x = x + scale * self._attend(at, kept, self._norm(x, f"{at}.input_layernorm"))
            y = self._norm(x, f"{at}.post_attention_layernorm")
            gate = self.w[f"{at}.mlp.gate_proj.weight"] @ y
            up = self.w[f"{at}.mlp.up_proj.weight"] @ y
            x = x + scale * (
                self.w[f"{at}.mlp.down_proj.weight"] @ (gate / (1 + np.exp(-gate)) * up)
            )
        return x

    def _attend(
        self, at: str, kept: list[tuple[np.ndarray, np.ndarray]], x: np.ndarray
    ) -> np.ndarray:
        size = self.c.hidden_size // self.c.num_attention_heads
        q, k, v = ((self.w[f"{at}.self_attn.{p}_proj.weight"] @ x).reshape(-1, size) for p in "qkv")
        kept.append((k, v))
        if len(kept) > self.window:
            del kept[self.pinned]  # the oldest that is not pinned
        groups = self.c.num_attention_heads // self.c.num_key_value_heads
        out = np.zeros_like(q)
        for head in range(self.c.num_attention_heads):
            query = self._rotate(q[head], len(kept) - 1)
            scores = np.array(
                [query @ self._rotate(k[head // groups], rank) for rank, (k, _) in enumerate(kept)]
            ) / np.sqrt(size)
            weights = np.exp(scores - scores.max())
            weights /= weights.sum()
            out[head] = sum(w * v[head // groups] for w, (_, v) in zip(weights, kept, strict=True))
        return self.w[f"{at}.self_attn.o_proj.weight"] @ out.reshape(-1)

    def _rotate(self, x: np.ndarray, position: int) -> np.ndarray:
        pairs = x[: len(x) // 2] + 1j * x[len(x) // 2 :]
        angles = position * self.c.rope_theta ** (-np.arange(len(pairs)) / len(pairs))
        turned = pairs * np.exp(1j * angles)
        return np.concatenate((turned.real, turned.imag))

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean() + self.c.rms_norm_eps) * self.w[f"{name}.weight"]


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize(("window", "pinned"), [(12, 4), (12, 7), (9, 8), (5, 1), (64, 4)])
@pytest.mark.parametrize("chunks", ["one", "steps", "mixed"])
def test_sliding_window_equals_streaming_llm(
    window: int, pinned: int, chunks: str, record_property: Record
) -> None:
    decoder, length = _decoder(), 40
    embeds = _embeds(decoder, length)
    plain = StreamingDecoder(decoder, window, pinned)
    expected = np.stack([plain.step(x) for x in embeds[0].double().numpy()])[None]
    sizes = {"one": [length], "steps": [1] * length, "mixed": [10, 1, 1, 15, 1, 12]}[chunks]
    cache = KVCache(decoder.c.num_hidden_layers, window=window, pinned=pinned)
    actual = torch.cat([decoder(part, cache=cache) for part in embeds.split(sizes, dim=1)], dim=1)
    assert cache.length == length
    assert len(cache.positions) == min(window - 1, length), "tokens kept for the next query"
    name = f"window {window}, {pinned} pinned, {chunks}"
    assert_close(name, actual, expected, FLOAT32_SUMS, record_property)


def test_a_full_window_changes_what_is_computed() -> None:
    decoder = _decoder()
    embeds = _embeds(decoder, 14)
    cache = KVCache(decoder.c.num_hidden_layers, window=12)
    difference = (decoder(embeds, cache=cache) - decoder(embeds)).abs().amax(dim=(0, 2))
    assert difference[:12].max() < 1e-4 < 1e-2 < difference[12:].min()


def test_memory_stops_growing_when_the_window_is_full() -> None:
    decoder = _decoder()
    cache = KVCache(decoder.c.num_hidden_layers, window=12)
    decoder(_embeds(decoder, 30), cache=cache)
    for seed in range(5):
        decoder(_embeds(decoder, 1, seed), cache=cache)
        assert cache.positions.tolist() == [0, 1, 2, 3, *range(cache.length - 7, cache.length)]


@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 8, 10, 11])
def test_truncated_cache_goes_on_as_if_nothing_followed(length: int) -> None:
    """Before the window is full, any earlier point can be returned to."""
    decoder = _decoder()
    embeds, other = _embeds(decoder, 11), _embeds(decoder, 6, seed=2)
    cache = KVCache(decoder.c.num_hidden_layers, window=12)
    decoder(embeds, cache=cache)
    assert cache.truncate(length)
    assert cache.length == len(cache.positions) == length
    fresh = KVCache(decoder.c.num_hidden_layers, window=12)
    expected = decoder(torch.cat((embeds[:, :length], other), dim=1), cache=fresh)[:, length:]
    torch.testing.assert_close(decoder(other, cache=cache), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("length", [0, 2, 4, 5, 12, 18, 19, 20])
@pytest.mark.parametrize("splits", [[20], [1] * 20, [11, 9]])
def test_truncation_is_refused_where_tokens_are_lost(splits: list[int], length: int) -> None:
    """After the window slid, only the pinned tokens and the present can be returned to."""
    decoder = _decoder()
    embeds, other = _embeds(decoder, 20), _embeds(decoder, 5, seed=2)
    cache = KVCache(decoder.c.num_hidden_layers, window=12, pinned=4)
    for part in embeds.split(splits, dim=1):
        decoder(part, cache=cache)
    before = cache.positions.clone()
    kept = cache.truncate(length)
    assert kept == (length <= 4 or length == 20)
    if not kept:
        assert cache.length == 20 and torch.equal(cache.positions, before), "must be unchanged"
        length = 20
    fresh = KVCache(decoder.c.num_hidden_layers, window=12, pinned=4)
    expected = decoder(torch.cat((embeds[:, :length], other), dim=1), cache=fresh)[:, length:]
    torch.testing.assert_close(decoder(other, cache=cache), expected, rtol=0, atol=1e-4)


def test_truncation_twice() -> None:
    """What a first truncation dropped counts as lost no more, nor as kept."""
    decoder = _decoder()
    embeds = _embeds(decoder, 20)
    cache = KVCache(decoder.c.num_hidden_layers, window=12, pinned=4)
    decoder(embeds, cache=cache)
    assert cache.truncate(3)
    decoder(embeds[:, 3:9], cache=cache)
    assert cache.truncate(6)
    actual = decoder(embeds[:, 6:], cache=cache)
    fresh = KVCache(decoder.c.num_hidden_layers, window=12, pinned=4)
    torch.testing.assert_close(actual, decoder(embeds, cache=fresh)[:, 6:], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("window", "pinned"), [(4, 4), (8, 9), (12, 0)])
def test_a_window_without_room_is_refused(window: int, pinned: int) -> None:
    with pytest.raises(PromptError, match=rf"context window {window} .* {pinned} pinned"):
        KVCache(2, window=window, pinned=pinned)
