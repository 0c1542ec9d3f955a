"""Beam search, as `transformers` does it with early_stopping=False and length_penalty=1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.backend import Backend, Cache
from runtime.generate import Generation
from runtime.protocol import Stop
from runtime.reference.kv_cache import KVCache
from runtime.sampling import GenerationOptions, check_logits, penalize
from runtime.session import Cancelled


@dataclass(frozen=True)
class _Beam:
    ids: list[int]
    log_probability: float  # of all ids, repetition penalty included

    @property
    def score(self) -> float:
        """The log-probability per token: length_penalty 1."""
        return self.log_probability / max(len(self.ids), 1)


def beam_search(
    backend: Backend,
    cache: Cache,
    logits: Tensor,
    options: GenerationOptions,
    *,
    cancelled: Cancelled,
) -> Generation:
    """Continues a prompt along the `num_beams` likeliest ways and returns the best.

    Args:
        backend: the model.
        cache: holds the prompt; a `KVCache`, which can hold several beams.
        logits: (V,) after the prompt.
        options: without sampling.
        cancelled: asked before every step.
    """
    assert isinstance(cache, KVCache), "other caches hold one sequence"
    eos, width = backend.config.decoder.eos_token_id, options.num_beams
    rows = [_Beam([], 0.0)]  # what the rows of the cache hold behind the prompt
    finished: list[_Beam] = []
    running, rows_logits, steps = rows, logits.unsqueeze(0), 0
    stop = Stop.CANCELLED
    while not cancelled():
        candidates, parents = _continuations(rows, rows_logits, options)
        ends = [b.ids[-1] == eos or len(b.ids) == options.max_new_tokens for b in candidates]
        finished += [b for b, end in zip(candidates[:width], ends[:width], strict=True) if end]
        finished = sorted(finished, key=lambda b: b.score, reverse=True)[:width]
        going = [i for i, end in enumerate(ends) if not end][:width]
        running = [candidates[i] for i in going]
        full = len(finished) == width
        if not running or (full and running[0].score <= finished[-1].score):
            stop = Stop.EOS if finished[0].ids[-1] == eos else Stop.LENGTH
            break
        cache.reorder(torch.tensor([parents[i] for i in going]))
        embeds = backend.embed([b.ids[-1] for b in running]).unsqueeze(1)
        rows_logits = backend.logits(backend.forward(embeds, cache))[:, -1]
        rows, steps = running, steps + 1
    best = (finished or running)[0]
    nearest = max(range(len(rows)), key=lambda i: _common(rows[i].ids, best.ids))
    cache.reorder(torch.tensor([nearest]))
    ids = best.ids[:-1] if best.ids[-1:] == [eos] else best.ids
    return Generation(ids, rows[nearest].ids, steps, stop)


def _continuations(
    rows: list[_Beam], logits: Tensor, options: GenerationOptions
) -> tuple[list[_Beam], list[int]]:
    """Returns the likeliest next beams, best first, and the row that each continues.

    Twice as many as there are beams: each row can end only once, so enough can go on.
    """
    log_probabilities = check_logits(logits).log_softmax(-1)
    totals = torch.stack(
        [
            penalize(row, beam.ids, options.repetition_penalty) + beam.log_probability
            for row, beam in zip(log_probabilities, rows, strict=True)
        ]
    )
    vocab_size = totals.shape[1]
    best = totals.flatten().topk(min(2 * options.num_beams, totals.numel()))
    beams, parents = [], []
    for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        parent, token = divmod(index, vocab_size)
        beams.append(_Beam([*rows[parent].ids, token], value))
        parents.append(parent)
    return beams, parents


def _common(a: list[int], b: list[int]) -> int:
    """Returns how many ids two lists share from the start."""
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
