"""The loop from a prefilled cache to an answer: greedy, or sampled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from runtime.engine_client.protocol import Stop
from runtime.inputs.callbacks import Cancelled, OnLogprobs
from runtime.inputs.generation_options import GenerationOptions
from runtime.inputs.logprobs import step_logprobs
from runtime.inputs.sampling import Sampler
from runtime.sessions.backend import Backend, Cache

OnToken = Callable[[int], None]


@dataclass(frozen=True)
class Generation:
    """An answer's ids, and what is left behind."""

    ids: list[int]  # without the end token
    cached: list[int]  # the ids that the cache now holds behind the prompt
    steps: int  # passes through the decoder
    stop: str  # a value of `Stop`


def generate(
    backend: Backend,
    cache: Cache,
    logits: Tensor,
    options: GenerationOptions,
    *,
    on_token: OnToken,
    on_logprobs: OnLogprobs = lambda step: None,
    cancelled: Cancelled,
    stopped: Cancelled = lambda: False,
) -> Generation:
    """Continues a prompt one token at a time.

    Args:
        backend: the model.
        cache: holds the prompt; the answer is added to it.
        logits: (V,) after the prompt.
        options: one beam only.
        on_token: called with every id as soon as it is known.
        on_logprobs: called for every token before `on_token`, if the options ask for logprobs.
        cancelled: asked before every token.
        stopped: asked after every token: whether the answer's text has come to a stop text.
    """
    assert options.num_beams == 1, "beams have a search of their own"
    sampler, eos = Sampler(options), backend.config.decoder.eos_token_id
    ids: list[int] = []
    while not cancelled():
        token = sampler.choose(logits, ids)
        if token == eos:
            return Generation(ids, list(ids), len(ids), Stop.EOS)
        ids.append(token)
        if options.top_logprobs is not None:
            on_logprobs(step_logprobs(logits, token, options.top_logprobs))
        on_token(token)
        if stopped():
            return Generation(ids, ids[:-1], len(ids) - 1, Stop.STOP_STRING)
        if len(ids) == options.max_new_tokens:
            return Generation(ids, ids[:-1], len(ids) - 1, Stop.LENGTH)
        logits = backend.logits(backend.forward(backend.embed([token]), cache))[-1]
    return Generation(ids, list(ids), len(ids), Stop.CANCELLED)
