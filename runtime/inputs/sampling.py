"""Which token comes next: the processing of logits, as `transformers` orders it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quantize.errors import ConfigError
from runtime.inputs.generation_options import GenerationOptions
from runtime.inputs.prompt import BOS_ID


class Sampler:
    """Chooses one token after the other for one answer."""

    def __init__(self, options: GenerationOptions) -> None:
        self._options = options
        self._generator = torch.Generator()
        if options.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(options.seed)

    def choose(self, logits: Tensor, generated: Sequence[int]) -> int:
        """Returns the next token's id.

        Args:
            logits: (V,) float32.
            generated: the answer's ids so far.

        Raises:
            ConfigError: the logits are not finite.
        """
        scores = penalize(check_logits(logits), generated, self._options.repetition_penalty)
        if not self._options.do_sample:
            return int(scores.argmax())
        ids, probabilities = distribution(scores, self._options)
        return int(ids[torch.multinomial(probabilities, 1, generator=self._generator)])


def check_logits(logits: Tensor) -> Tensor:
    """Returns logits on the CPU, or raises ConfigError where a narrow dtype overflowed."""
    logits = logits.to("cpu", torch.float32)
    if not bool(torch.isfinite(logits).all()):
        raise ConfigError(
            "the model's logits are not finite; expected numbers: try --dtype float32"
        )
    return logits


def penalize(scores: Tensor, generated: Sequence[int], penalty: float) -> Tensor:
    """Makes tokens (V,) that were generated before less likely, whatever their score's sign.

    `<s>` is always one of them: the original's answers begin with it, unseen.
    """
    if penalty == 1.0:
        return scores
    seen = torch.tensor(sorted({BOS_ID, *generated}), device=scores.device)
    old = scores[seen]
    return scores.index_copy(0, seen, torch.where(old < 0, old * penalty, old / penalty))


def distribution(scores: Tensor, options: GenerationOptions) -> tuple[Tensor, Tensor]:
    """Applies temperature, then top-k, then top-p to scores (V,).

    Returns:
        The ids (N,) that survive, least likely first, and their probabilities (N,).
    """
    scores = scores / options.temperature
    if options.top_k is not None and options.top_k < scores.shape[0]:
        # Tokens that tie with the last of the k survive with it.
        limit = scores.topk(options.top_k).values[-1]
        ids = (scores >= limit).nonzero().squeeze(1)
        scores = scores[ids]
    else:
        ids = torch.arange(scores.shape[0])
    order = scores.argsort(stable=True)
    scores, ids = scores[order], ids[order]
    if options.top_p < 1:
        kept = scores.softmax(0).cumsum(0) > 1 - options.top_p
        kept[-1] = True
        scores, ids = scores[kept], ids[kept]
    return ids, scores.softmax(0)
