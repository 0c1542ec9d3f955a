"""Compiled blocks against the numpy model of the same arithmetic, and against the reference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from convert.bundle.kv_cache import FP16, INT8
from convert.bundle.plan import Recipe, make_plan
from convert.checkpoint.config import ModelConfig
from convert.checkpoint.tensor_tables import Rule, reference_rules
from quantize.layout import unpack_tiles
from quantize.schemes import dequantize_groups
from runtime.reference.kv_cache import KVCache
from runtime.reference.model import MiniCPMV
from tests.support.compare import Record, assert_close
from tests.support.compiled import PREFILL_CHUNK, CompiledCache, CompiledModel, compile_here
from tests.support.quantized import SCHEME, NumpyModel, bundle_tensors
from tests.support.tiny import random_state
from tests.support.tiny_config import tiny_config

Array = np.ndarray
ROUNDING = 5e-6  # float32 sums of some hundred products in another order
# dB; attention in 16-bit words, which the model in numpy does not round to, moves a few of the
# activations behind it to the next int8 code.
WORDS = 40
LONG = 66  # tokens: no multiple of any block of rows


class _Setup:
    """One tiny model in three forms."""

    def __init__(
        self,
        *,
        untied: bool = False,
        recipe: Recipe | None = None,
        kv: str = FP16,
        **overrides: Any,
    ) -> None:
        raw = tiny_config(**overrides)
        self.config = ModelConfig.from_json(raw)
        self.state = random_state(raw, head="different" if untied else "none", outliers=True)
        if self.config.vision is None:  # as a checkpoint's reader names it
            self.state = {f"llm.{name}": weight for name, weight in self.state.items()}
        plan = make_plan(self.config, untied, recipe or Recipe.load("q4f16_1"), kv)
        self.tensors = bundle_tensors(self.state, plan)
        self.machine = compile_here(self.config, plan)
        self.model = CompiledModel(self.config, self.machine, self.tensors, kv)
        self.numpy = NumpyModel(self.config, self.tensors, kv)
        self.untied = untied

    def reference(self) -> MiniCPMV:
        """Returns the full-precision model."""
        rules = reference_rules(self.config, self.untied)
        rows = [rule for rule in rules if isinstance(rule, Rule)]
        made = {rule.name: rule.make(self.state.__getitem__) for rule in rows}
        made["llm.lm_head.weight"] = made["llm.model.embed_tokens.weight"]
        model = MiniCPMV(self.config)
        model.load_state_dict(made)
        return model.eval()

    def dequantized(self) -> MiniCPMV:
        """Returns the reference with the decoder's weights as a bundle stores them."""
        model, c = self.reference(), self.config.decoder
        d, hidden = c.hidden_size, c.intermediate_size
        for i, layer in enumerate(model.llm.model.layers):
            stacks = {
                "qkv": [layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj],
                "o": [layer.self_attn.o_proj],
                "gate_up": [layer.mlp.gate_proj, layer.mlp.up_proj],
                "down": [layer.mlp.down_proj],
            }
            for name, linears in stacks.items():
                count = {"qkv": d + 2 * c.kv_dim, "gate_up": 2 * hidden}.get(name, d)
                packed = (self.tensors[f"llm.layers.{i}.{name}.q_{p}"] for p in ("weight", "scale"))
                weight = dequantize_groups(*unpack_tiles(*packed, count), SCHEME)
                sizes = [linear.out_features for linear in linears]
                for linear, part in zip(
                    linears, torch.from_numpy(weight).split(sizes), strict=True
                ):
                    linear.weight.data = part
        return model


@pytest.fixture(scope="module")
def tiny() -> _Setup:
    """Grouped heads, a vocabulary of 501, an encoder MLP of 540, 4x4 patches."""
    return _Setup(num_key_value_heads=2)


@pytest.fixture(scope="module")
def coded() -> _Setup:
    """The decoder of `tiny` with an int8 cache."""
    return _Setup(num_key_value_heads=2, decoder_only=True, kv=INT8)


@pytest.fixture(params=["tiny", "coded"])
def setup(request: pytest.FixtureRequest) -> _Setup:
    """One of both caches."""
    found: _Setup = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def small() -> _Setup:
    """One patch, one image token, narrow heads, a head of its own; other formats than usual."""
    raw = dict(Recipe.load("q4f16_1").source)
    others = {
        "llm.embed": "q8",
        "llm.head": "f16_tiled",
        "llm.layers.*.o": "f16_tiled",
        "llm.layers.*.down": "q8",
        "resampler.v_proj.weight": "q4",
        "vision.blocks.*.proj.weight": "f16_tiled",
        "vision.patch_embed.weight": "q8",
        "resampler.kv_proj.weight": "f16_tiled",
    }
    rows = [{"pattern": name, "format": form, "why": "test"} for name, form in others.items()]
    return _Setup(
        untied=True,
        recipe=Recipe.from_json({**raw, "tensors": [*rows, *raw["tensors"]]}),
        image_size=14,
        query_num=1,
        num_attention_heads=16,
        num_key_value_heads=16,
        num_hidden_layers=1,
    )


def _normal(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def _ids(count: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(count).integers(0, 501, count)]


def _forward(model: CompiledModel, x: Array, cache: CompiledCache) -> Array:
    for i in range(model.config.decoder.num_hidden_layers):
        x = model.layer(i, x, cache)
    return x


def _assert_same_arithmetic(name: str, actual: Array, expected: Array, record: Record) -> None:
    """Compares hidden states row by row.

    A value on the border between two codes may be rounded to either, and moves its row, and
    through keys and values later rows, by a part of a step. Most rows have no such value and
    agree as float32 does.
    """
    largest = np.abs(expected).max()
    error = np.abs(actual - expected).max(1) / largest
    record(name, f"rows' errors: median {np.median(error):.2g}, largest {error.max():.2g}")
    assert np.median(error) < ROUNDING, name
    _assert_sqnr(name, actual, expected, 45, record)


def _assert_sqnr(name: str, actual: Array, expected: Array, least: float, record: Record) -> None:
    power = (expected.astype(np.float64) ** 2).mean()
    noise = ((actual.astype(np.float64) - expected) ** 2).mean()
    sqnr = 10 * math.log10(power / noise) if noise else math.inf
    record(f"{name}, SQNR", f"{sqnr:.1f} dB")
    assert sqnr >= least, f"{name}: SQNR {sqnr:.1f} dB < {least} dB"


@pytest.mark.parametrize(("which", "least"), [("tiny", 30), ("small", 18)])
def test_vision(
    which: str, least: float, request: pytest.FixtureRequest, record_property: Record
) -> None:
    setup: _Setup = request.getfixturevalue(which)
    c, model = setup.config.vision, setup.model
    assert c is not None
    pixels = _normal(3, c.image_size, c.image_size)
    x = model.vision_embed(pixels)
    expected = setup.numpy.vision_embed(pixels)
    _assert_same_arithmetic("vision_embed", x, expected, record_property)
    for i in range(c.depth):
        x, before = model.vision_block(i, x), x
        expected = setup.numpy.vision_block(i, before)
        _assert_sqnr(f"vision_block {i}", x, expected, WORDS, record_property)
    features = model.vision_norm(x)
    expected = setup.numpy.vision_norm(x)
    assert_close("vision_norm", features, expected, ROUNDING, record_property)
    shape = (c.grid, c.grid)
    tokens = model.resample(features, shape)
    expected = setup.numpy.resample(features, shape)
    _assert_sqnr("resampler", tokens, expected, WORDS, record_property)
    with torch.no_grad():
        reference = setup.reference().encode_image(torch.from_numpy(pixels)[None])[0]
    _assert_sqnr(
        "image tokens against the reference", tokens, reference.numpy(), least, record_property
    )


@pytest.mark.parametrize("length", [1, 2, 17, LONG])
@pytest.mark.parametrize("which", ["tiny", "small", "coded"])
def test_decoder(
    which: str, length: int, request: pytest.FixtureRequest, record_property: Record
) -> None:
    setup: _Setup = request.getfixturevalue(which)
    x = setup.model.embed(_ids(length))
    np.testing.assert_array_equal(x, setup.numpy.embed(_ids(length)))
    cache = setup.model.new_cache(1024, 4)
    for i in range(setup.config.decoder.num_hidden_layers):
        expected = setup.numpy.decoder(x, 1024, 4)[0] if i == 0 else None
        x = setup.model.layer(i, x, cache)
        if expected is not None:
            _assert_same_arithmetic("layer 0", x, expected, record_property)
    assert cache.length == length
    logits, expected = setup.model.logits(x), setup.numpy.logits(x)
    assert logits.shape == (length, 501)
    _assert_same_arithmetic("logits", logits, expected, record_property)


@pytest.mark.parametrize(
    ("window", "pinned", "chunk"), [(40, 8, 128), (40, 20, 16), (24, 4, 5), (9, 8, 3)]
)
def test_sliding_window(
    setup: _Setup, window: int, pinned: int, chunk: int, record_property: Record
) -> None:
    x = setup.model.embed(_ids(LONG))
    expected = setup.numpy.layer(0, x, window, pinned)
    cache = setup.model.new_cache(window, pinned, chunk=chunk)
    actual = setup.model.layer(0, x, cache)
    _assert_same_arithmetic("layer 0", actual, expected, record_property)
    without = setup.numpy.layer(0, x, LONG, pinned)
    assert np.abs(without - expected).max() > 100 * np.abs(actual - expected).max()


def test_sliding_window_as_the_reference_has_it(tiny: _Setup, record_property: Record) -> None:
    """Token by token with a window of 24; the reference has no int8 activations (4 %)."""
    window, pinned = 24, 6
    x = tiny.model.embed(_ids(LONG))
    cache = tiny.model.new_cache(window, pinned)
    actual = np.concatenate([_forward(tiny.model, row[None], cache) for row in x])
    decoder = tiny.dequantized().llm
    seen = KVCache(tiny.config.decoder.num_hidden_layers, window=window, pinned=pinned)
    with torch.no_grad():
        embeds = torch.from_numpy(x)[None]
        parts = [decoder(embeds[:, t : t + 1], cache=seen)[0] for t in range(LONG)]
        everything = decoder(embeds)[0].numpy()
    expected = torch.cat(parts).numpy()
    _assert_sqnr("decoder", actual, expected, 24, record_property)
    with pytest.raises(AssertionError, match="SQNR"):
        _assert_sqnr("without a window", everything, expected, 12, record_property)


@pytest.mark.parametrize("window", [256, 40])
@pytest.mark.parametrize("splits", [(1,), (33,), (65,), (7, 8, 50), tuple(range(1, LONG))], ids=str)
def test_prefill_in_parts_equals_prefill_at_once(
    setup: _Setup, window: int, splits: tuple[int, ...]
) -> None:
    x = setup.model.embed(_ids(LONG))
    whole = _forward(setup.model, x, setup.model.new_cache(window, 8))
    cache = setup.model.new_cache(window, 8)
    parts = [_forward(setup.model, part, cache) for part in np.split(x, splits)]
    # To the bit: a token's sums do not depend on the tokens beside it.
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_more_tokens_than_a_chunk_go_through_in_chunks(tiny: _Setup) -> None:
    x = tiny.model.embed(_ids(2 * PREFILL_CHUNK + 3))
    whole = _forward(tiny.model, x, tiny.model.new_cache(512, 8))
    cache = tiny.model.new_cache(512, 8)
    parts = [_forward(tiny.model, part, cache) for part in np.split(x, [PREFILL_CHUNK, 200])]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("length", [0, 1, 5, 8, 30, 65, 66])
def test_truncate_and_go_on(setup: _Setup, length: int) -> None:
    x, other = setup.model.embed(_ids(LONG)), setup.model.embed(_ids(20))
    cache = setup.model.new_cache(40, 8)
    _forward(setup.model, x, cache)
    assert cache.truncate(length)
    assert cache.length == length
    actual = _forward(setup.model, other, cache)
    fresh = setup.model.new_cache(40, 8)
    if length:
        _forward(setup.model, x[:length], fresh)
    np.testing.assert_array_equal(actual, _forward(setup.model, other, fresh))


def test_truncate_refuses_what_is_overwritten(tiny: _Setup) -> None:
    cache = tiny.model.new_cache(40, 8, chunk=16)
    x = tiny.model.embed(_ids(LONG))
    _forward(tiny.model, x, cache)
    # 48 slots for the newest: tokens 18 to 65 are there; a query at 49 sees 18 to 49.
    assert not cache.truncate(48)
    assert cache.length == LONG
    assert cache.truncate(49)
    _forward(tiny.model, x[:1], cache)
    assert not cache.truncate(48), "what was overwritten stays so"
    assert cache.truncate(8), "the pinned are never overwritten"


def test_far_into_a_conversation(tiny: _Setup, record_property: Record) -> None:
    """Keys rotated to large positions still meet queries at small distances."""
    x = tiny.model.embed(_ids(LONG))
    cache = tiny.model.new_cache(16, 4)
    for _ in range(40):
        tiny.model.layer(0, x, cache)
    expected = np.concatenate([x, x])
    expected = tiny.numpy.layer(0, expected, 16, 4)[LONG:]
    _assert_sqnr("layer 0", tiny.model.layer(0, x, cache), expected, 45, record_property)
