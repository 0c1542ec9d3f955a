"""How likely the model took tokens to be: what a client may ask for beside an answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LIMIT = 20  # of the likeliest, as OpenAI's interface has it


@dataclass(frozen=True)
class TokenLogprob:
    """A token, and the natural logarithm of its probability."""

    id: int
    logprob: float


@dataclass(frozen=True)
class StepLogprobs:
    """A token of an answer, and the likeliest in its place."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]  # the likeliest first, of equals the lowest id


def step_logprobs(logits: Tensor, chosen: int, count: int) -> StepLogprobs:
    """Takes them from the model's own distribution.

    That is before repetition penalty, temperature, top-k and top-p.

    Args:
        logits: (V,), finite.
        chosen: the token that was taken.
        count: of the likeliest.
    """
    logprobs = logits.double().log_softmax(0)
    likeliest = logprobs.argsort(descending=True, stable=True)[:count].tolist()
    first, *top = (TokenLogprob(i, float(logprobs[i])) for i in (chosen, *likeliest))
    return StepLogprobs(first, tuple(top))
