"""Beam search as in `transformers` 4.36, which the original was published with.

Its settings there: early_stopping=False and length_penalty=1. Later versions stop sooner: they
hold the worst finished beam against the best running one, 4.36 against the best of all candidates,
those that just ended among them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.engine_client.protocol import Stop
from runtime.inputs.callbacks import Cancelled
from runtime.inputs.generation_options import GenerationOptions
from runtime.inputs.sampling import check_logits, penalize
from runtime.reference.kv_cache import KVCache
from runtime.sessions.backend import Backend, Cache
from runtime.sessions.generate import Generation


@dataclass(frozen=True)
class _Beam:
    ids: list[int]
    log_probability: float  # of all ids, repetition penalty included

    @property
    def score(self) -> float:
        """The log-probability per token: length_penalty 1."""
        return self.log_probability / max(len(self.ids), 1)


class _Finished:
    """The best beams that have come to their end, at most `width`."""

    def __init__(self, width: int) -> None:
        self._beams: list[_Beam] = []  # in the order in which they ended
        self._width = width

    def __bool__(self) -> bool:
        return bool(self._beams)

    @property
    def best(self) -> _Beam:
        """The one with the highest score; of equals the latest."""
        return max(reversed(self._beams), key=lambda beam: beam.score)

    def add(self, beam: _Beam) -> None:
        """Takes a beam, unless it is no better than the worst of enough."""
        if len(self._beams) == self._width:
            worst = min(self._beams, key=lambda beam: beam.score)
            if beam.score <= worst.score:
                return
            self._beams.remove(worst)
        self._beams.append(beam)

    def is_enough(self, candidate: _Beam) -> bool:
        """Says whether there are enough, and none worse than the best candidate is now."""
        full = len(self._beams) == self._width
        return full and min(beam.score for beam in self._beams) >= candidate.score


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
    finished = _Finished(width)
    rows_logits, steps = logits.unsqueeze(0), 0
    stop = Stop.CANCELLED
    while not cancelled():
        candidates, parents = _continuations(rows, rows_logits, options)
        ended = [candidate.ids[-1] == eos for candidate in candidates]
        for candidate, end in zip(candidates[:width], ended[:width], strict=True):
            if end:
                finished.add(candidate)
        going = [i for i, end in enumerate(ended) if not end][:width]
        enough = finished.is_enough(candidates[0])
        if enough or not going or len(candidates[0].ids) == options.max_new_tokens:
            for i in [] if enough else going:
                finished.add(candidates[i])
            stop = Stop.EOS if finished.best.ids[-1] == eos else Stop.LENGTH
            break
        cache.reorder(torch.tensor([parents[i] for i in going]))
        rows, steps = [candidates[i] for i in going], steps + 1
        embeds = backend.embed([b.ids[-1] for b in rows]).unsqueeze(1)
        rows_logits = backend.logits(backend.forward(embeds, cache))[:, -1]
    best = finished.best if finished else rows[0]
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
