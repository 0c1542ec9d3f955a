"""The decoder against `transformers`' Granite, which is the same decoder with other names."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import GraniteConfig, GraniteForCausalLM

from convert.checkpoint.config import CONFIGS, DecoderConfig, ModelConfig
from quantize.errors import ConfigError
from runtime.reference.decoder import Decoder
from runtime.reference.kv_cache import KVCache
from tests.support.compare import Record, assert_close, randomize

# Both sum the same float32 products in another order, and ours takes the angles of its positions
# in float64. Measured 7e-7.
FLOAT32_ORDER = 1e-5
# Chunks change only the order in which products are summed. Measured 4e-7.
FLOAT32_CHUNKS = 5e-6


def _demo() -> DecoderConfig:
    return ModelConfig.load(CONFIGS / "demo" / "config.json").decoder


def _grouped() -> DecoderConfig:
    """Three query heads to a key head, and a base of the positions that is not the default."""
    return replace(
        _demo(),
        hidden_size=192,
        intermediate_size=160,
        num_attention_heads=12,
        num_key_value_heads=4,
        num_hidden_layers=3,
        vocab_size=333,
        rope_theta=500.0,
        rms_norm_eps=1e-3,
        scale_depth=0.9,
    )


def _one_real_layer() -> DecoderConfig:
    """The real model's widths and one of its 40 layers; a vocabulary that is quick to make."""
    real = ModelConfig.load(CONFIGS / "model" / "minicpm-v-1.0.json").decoder
    return replace(real, num_hidden_layers=1, vocab_size=1001)


def _decoder(c: DecoderConfig, seed: int = 0) -> Decoder:
    decoder = Decoder(c).eval()
    randomize(decoder, seed)
    return decoder


def _granite(decoder: Decoder, c: DecoderConfig) -> GraniteForCausalLM:
    config = GraniteConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.hidden_size,
        intermediate_size=c.intermediate_size,
        num_hidden_layers=c.num_hidden_layers,
        num_attention_heads=c.num_attention_heads,
        num_key_value_heads=c.num_key_value_heads,
        rms_norm_eps=c.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
        embedding_multiplier=1.0,
        residual_multiplier=c.scale_depth / math.sqrt(c.num_hidden_layers),
        logits_scaling=c.hidden_size / c.dim_model_base,
        attention_multiplier=1 / math.sqrt(c.hidden_size // c.num_attention_heads),
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    model = GraniteForCausalLM(config).eval()
    model.load_state_dict(decoder.state_dict())
    return model


def _embeds(decoder: Decoder, length: int, batch: int = 1, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(decoder.c.vocab_size, (batch, length), generator=generator)
    return decoder.embed(ids)


def _cache(c: DecoderConfig, window: int = 64) -> KVCache:
    return KVCache(c.num_hidden_layers, window=window)


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("geometry", [_demo, _grouped, _one_real_layer])
def test_forward_equals_granite(geometry, record_property: Record) -> None:
    c = geometry()
    decoder = _decoder(c)
    granite = _granite(decoder, c)
    ids = torch.randint(c.vocab_size, (2, 40), generator=torch.manual_seed(1))
    expected = granite(
        inputs_embeds=granite.model.embed_tokens(ids) * c.scale_emb, output_hidden_states=True
    )
    taps: dict[str, Tensor] = {}
    hidden = decoder(decoder.embed(ids), tap=taps.__setitem__)
    name = f"width {c.hidden_size}, {c.num_attention_heads}/{c.num_key_value_heads} heads"
    # Granite's last hidden state is the normed one; the ones before are the layers' outputs.
    assert len(taps) == c.num_hidden_layers
    for i, layer in enumerate(expected.hidden_states[1:-1]):
        assert_close(
            f"layer {i}, {name}", taps[f"layers.{i}"], layer, FLOAT32_ORDER, record_property
        )
    logits = decoder.logits(hidden)
    assert logits.dtype == torch.float32
    assert_close(f"logits, {name}", logits, expected.logits, FLOAT32_ORDER, record_property)


@pytest.mark.parametrize("geometry", [_demo, _grouped])
def test_cached_decode_equals_granite_step_by_step(geometry, record_property: Record) -> None:
    c = geometry()
    decoder = _decoder(c)
    granite = _granite(decoder, c)
    embeds = _embeds(decoder, 24)
    expected = granite(inputs_embeds=embeds).logits
    cache = _cache(c)
    steps = [decoder.logits(decoder(embeds[:, t : t + 1], cache=cache)) for t in range(24)]
    name = f"stepwise logits, width {c.hidden_size}"
    assert_close(name, torch.cat(steps, dim=1), expected, FLOAT32_ORDER, record_property)


def test_granites_own_cache_agrees(record_property: Record) -> None:
    c = _grouped()
    decoder = _decoder(c)
    granite = _granite(decoder, c)
    embeds = _embeds(decoder, 12)
    cache, past = _cache(c), None
    for start, stop in ((0, 7), (7, 8), (8, 9), (9, 12)):
        out = granite(inputs_embeds=embeds[:, start:stop], past_key_values=past, use_cache=True)
        past = out.past_key_values
        actual = decoder.logits(decoder(embeds[:, start:stop], cache=cache))
        name = f"logits of tokens {start} to {stop}"
        assert_close(name, actual, out.logits, FLOAT32_ORDER, record_property)


def test_prefill_in_two_chunks_equals_one_at_every_split(record_property: Record) -> None:
    c = _grouped()
    decoder = _decoder(c)
    embeds = _embeds(decoder, 17)
    whole = decoder(embeds)
    for split in range(18):
        cache = _cache(c)
        parts = [p for p in (embeds[:, :split], embeds[:, split:]) if p.shape[1]]
        actual = torch.cat([decoder(part, cache=cache) for part in parts], dim=1)
        assert cache.length == 17
        name = f"hidden states, split at {split}"
        assert_close(name, actual, whole, FLOAT32_CHUNKS, record_property)


def test_rows_of_a_batch_follow_their_beams() -> None:
    c = _grouped()
    decoder = _decoder(c)
    prompt, step = _embeds(decoder, 6, batch=3), _embeds(decoder, 1, batch=3, seed=2)
    beams = torch.tensor([2, 0, 2])
    cache = _cache(c)
    decoder(prompt, cache=cache)
    cache.reorder(beams)
    actual = decoder(step, cache=cache)
    expected = decoder(torch.cat((prompt[beams], step), dim=1))[:, -1:]
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


def test_mask_and_positions_separate_packed_texts() -> None:
    """Two texts in one row, as in training, give what each gives alone."""
    c = _grouped()
    decoder = _decoder(c)
    embeds = _embeds(decoder, 11)
    text = torch.tensor([0] * 6 + [1] * 5)
    mask = (text[:, None] == text[None, :]) & torch.ones(11, 11).tril().bool()
    positions = torch.tensor([[*range(6), *range(5)]])
    actual = decoder(embeds, positions=positions, mask=mask[None, None])
    expected = torch.cat((decoder(embeds[:, :6]), decoder(embeds[:, 6:])), dim=1)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


def test_far_positions_keep_their_distances() -> None:
    """Rotary positions are relative: the same text far out gives the same hidden states."""
    c = _demo()
    decoder = _decoder(c)
    embeds = _embeds(decoder, 9)
    far = decoder(embeds, positions=torch.arange(9) + 1_000_000)
    # Angles of a million radians, taken in float32, would be wrong in the second decimal.
    torch.testing.assert_close(far, decoder(embeds), rtol=0, atol=1e-4)


def test_the_head_is_the_embedding() -> None:
    decoder = _decoder(_grouped())
    assert decoder.lm_head.weight is decoder.model.embed_tokens.weight


def test_heads_that_cannot_be_grouped_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_key_value_heads 5"):
        replace(_grouped(), num_key_value_heads=5)
