"""Greedy and beam search against transformers' `generate` on the same tiny random decoder."""

import pytest
import torch
from transformers import GraniteConfig, GraniteForCausalLM

from convert.checkpoint.config import ModelConfig
from runtime.inputs.generation_options import GenerationOptions
from runtime.reference.model import MiniCPMV
from runtime.sessions.backend import ReferenceBackend
from runtime.sessions.beam import beam_search
from runtime.sessions.generate import generate
from tests.support.tiny import random_state
from tests.support.tiny_config import tiny_config

PROMPT = [1, 150, 33, 270, 8, 411]
EOS = 2
LOGITS_SCALE = 2


def make(seed: int, eos_scale: float) -> tuple[ReferenceBackend, GraniteForCausalLM]:
    """Returns the same random decoder twice: ours, and Granite's.

    Weights are scaled so that layers outweigh the embedding (otherwise a tied head repeats its
    input), logits differ by a few nats, and the end token is likely enough to be met.
    """
    raw = tiny_config(decoder_only=True, scale_emb=1, scale_depth=12)
    state = random_state(raw, seed=seed, head="none")
    embedding = state["model.embed_tokens.weight"]
    embedding *= LOGITS_SCALE
    embedding[EOS] *= eos_scale
    config = ModelConfig.from_json(raw)
    c = config.decoder
    model = MiniCPMV(config)
    ours = {f"llm.{name}": tensor for name, tensor in state.items()}
    model.load_state_dict(ours | {"llm.lm_head.weight": embedding})
    granite = GraniteForCausalLM(
        GraniteConfig(
            vocab_size=c.vocab_size,
            hidden_size=c.hidden_size,
            intermediate_size=c.intermediate_size,
            num_hidden_layers=c.num_hidden_layers,
            num_attention_heads=c.num_attention_heads,
            num_key_value_heads=c.num_key_value_heads,
            rms_norm_eps=c.rms_norm_eps,
            rope_theta=c.rope_theta,
            embedding_multiplier=1.0,
            residual_multiplier=c.residual_scale,
            logits_scaling=c.logits_divisor,
            attention_multiplier=c.head_dim**-0.5,
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=EOS,
            pad_token_id=0,
        )
    ).eval()
    # Granite scales prompts and generated tokens alike; here prompts come scaled.
    scaled = {"model.embed_tokens.weight": embedding * c.scale_emb, "lm_head.weight": embedding}
    granite.load_state_dict(state | scaled)
    return ReferenceBackend(model), granite


def theirs(granite: GraniteForCausalLM, embeds: torch.Tensor, **options: object) -> list[int]:
    out = granite.generate(
        inputs_embeds=embeds[None].clone(),
        attention_mask=torch.ones(1, embeds.shape[0], dtype=torch.long),
        do_sample=False,
        **options,
    )
    ids = out[0].tolist()
    return ids[: ids.index(EOS)] if EOS in ids else ids


def prefill(backend: ReferenceBackend):
    cache = backend.new_cache(window=4096, pinned=4)
    hidden = backend.forward(backend.embed(PROMPT), cache)
    return cache, backend.logits(hidden[-1:])[0]


def greedy(backend: ReferenceBackend, max_new_tokens: int, calls: int | None = None):
    """Returns a greedy generation, cancelled when it is asked for the `calls`-th time."""
    cache, logits = prefill(backend)
    tokens: list[int] = []
    asked = iter(range(1, 10**6))
    options = GenerationOptions(max_new_tokens=max_new_tokens)
    out = generate(
        backend,
        cache,
        logits,
        options,
        on_token=tokens.append,
        cancelled=lambda: next(asked) == calls,
    )
    assert tokens == out.ids
    return out, cache


def beams(backend: ReferenceBackend, max_new_tokens: int, calls: int | None = None):
    cache, logits = prefill(backend)
    asked = iter(range(1, 10**6))
    options = GenerationOptions(max_new_tokens=max_new_tokens, num_beams=3, repetition_penalty=1.2)
    cancelled = lambda: next(asked) == calls  # noqa: E731
    return beam_search(backend, cache, logits, options, cancelled=cancelled), cache


def next_logits(backend: ReferenceBackend, cache) -> torch.Tensor:
    return backend.logits(backend.forward(backend.embed([77]), cache))[-1]


# Chosen so that answers end early, late and not at all; 4: the end token is the likeliest first.
CASES = [(1.5, 0), (1.5, 1), (1.5, 2), (1.5, 5), (2.5, 2), (2.5, 3), (2.5, 4), (2.5, 7)]


@pytest.mark.parametrize(("eos_scale", "seed"), CASES)
def test_ids_equal_those_of_transformers(eos_scale, seed):
    backend, granite = make(seed, eos_scale)
    embeds = backend.embed(PROMPT)
    found, _ = beams(backend, 24)
    settings = {"num_beams": 3, "repetition_penalty": 1.2, "max_new_tokens": 24}
    assert found.ids == theirs(granite, embeds, **settings)
    found, _ = greedy(backend, 24)
    assert found.ids == theirs(granite, embeds, max_new_tokens=24)


def test_the_cases_cover_both_ways_to_end_and_beams_differ_from_greedy():
    stops, different = set(), 0
    for eos_scale, seed in CASES[:3]:
        backend, _ = make(seed, eos_scale)
        searched, _ = beams(backend, 24)
        stops.add(searched.stop)
        different += searched.ids != greedy(backend, 24)[0].ids
    assert stops == {"eos", "length"}
    assert different


@pytest.mark.parametrize("search", [greedy, beams])
@pytest.mark.parametrize(("eos_scale", "calls"), [(1.5, None), (2.5, None), (1.5, 4), (1.5, 1)])
def test_the_cache_holds_what_is_said_to_be_cached(search, eos_scale, calls):
    """A fresh cache with the prompt and those ids continues alike."""
    backend, _ = make(2, eos_scale)
    out, cache = search(backend, 8, calls)
    fresh = backend.new_cache(window=4096, pinned=4)
    backend.forward(backend.embed([*PROMPT, *out.cached]), fresh)
    assert cache.length == fresh.length
    difference = next_logits(backend, cache) - next_logits(backend, fresh)
    assert difference.abs().max() < 1e-4


@pytest.mark.parametrize("search", [greedy, beams])
def test_cancelling_ends_with_what_there_is(search):
    backend, _ = make(0, 1.0)
    out, _ = search(backend, 24, 4)
    assert (out.stop, len(out.ids), out.steps) == ("cancelled", 3, 3)
    nothing, _ = search(backend, 24, 1)
    assert (nothing.stop, nothing.ids) == ("cancelled", [])


def test_a_limit_of_tokens_is_kept():
    backend, _ = make(0, 1.0)
    for search in (greedy, beams):
        out, _ = search(backend, 1)
        assert (out.stop, len(out.ids), out.steps) == ("length", 1, 0)
