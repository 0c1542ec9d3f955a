"""The loop from a prefilled cache to an answer: greedy, or sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from runtime.backend import Backend, Cache
from runtime.protocol import Stop
from runtime.sampling import GenerationOptions, Sampler
from runtime.session import Cancelled

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
    cancelled: Cancelled,
    stopped: Cancelled = lambda: False,
    draft: Sequence[int] = (),
) -> Generation:
    """Continues a prompt one token at a time.

    A draft changes nothing but the time it takes: as far as the model says just that, its tokens
    run at once, as a prompt's do. Only the order of sums differs, as between prompts and answers.

    Args:
        backend: the model.
        cache: holds the prompt; the answer is added to it.
        logits: (V,) after the prompt.
        options: one beam only.
        on_token: called with every id as soon as it is known.
        cancelled: asked before every token.
        stopped: asked after every token: whether the answer's text has come to a stop text.
        draft: what the model may say, without the end token; the cache must hold the prompt and
            it without losing sight of a token.
    """
    assert options.num_beams == 1, "beams have a search of their own"
    steps = _Steps(backend, cache, draft[: options.max_new_tokens - 1])
    try:
        return _generate(steps, logits, options, on_token, cancelled, stopped)
    finally:
        steps.leave_draft()


class _Steps:
    """Passes through the decoder: one for each token, or a single one for a whole draft."""

    def __init__(self, backend: Backend, cache: Cache, draft: Sequence[int]) -> None:
        self.backend, self._cache, self._draft = backend, cache, list(draft)
        self._start = cache.length
        self._said = 0
        self._ahead: Tensor | None = None  # logits (L, V) after each token of the draft

    def after(self, token: int) -> Tensor:
        """Returns the logits (V,) after one token more."""
        at = self._said
        if at < len(self._draft) and token == self._draft[at]:
            if self._ahead is None:
                self._ahead = self._run(self._draft)
            self._said += 1
            return self._ahead[at]
        self.leave_draft()
        self._said += 1
        return self._run([token])[-1]

    def leave_draft(self) -> None:
        """Leaves nothing in the cache but what was said."""
        if self._ahead is not None:
            kept = self._cache.truncate(self._start + self._said)
            assert kept, "the draft slid out of the window"
        self._draft, self._ahead = [], None

    def _run(self, ids: Sequence[int]) -> Tensor:
        return self.backend.logits(self.backend.forward(self.backend.embed(ids), self._cache))


def _generate(
    steps: _Steps,
    logits: Tensor,
    options: GenerationOptions,
    on_token: OnToken,
    cancelled: Cancelled,
    stopped: Cancelled,
) -> Generation:
    sampler, eos = Sampler(options), steps.backend.config.decoder.eos_token_id
    ids: list[int] = []
    while not cancelled():
        token = sampler.choose(logits, ids)
        if token == eos:
            return Generation(ids, list(ids), len(ids), Stop.EOS)
        ids.append(token)
        on_token(token)
        if stopped():
            return Generation(ids, ids[:-1], len(ids) - 1, Stop.STOP_STRING)
        if len(ids) == options.max_new_tokens:
            return Generation(ids, ids[:-1], len(ids) - 1, Stop.LENGTH)
        logits = steps.after(token)
    return Generation(ids, list(ids), len(ids), Stop.CANCELLED)
