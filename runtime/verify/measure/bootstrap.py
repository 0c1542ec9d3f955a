"""Error bars of means over questions, by the bootstrap: questions are drawn again with replacement.

Positions of one question hang together, so that whole questions are drawn. Two models are drawn
together: what a question adds to both says nothing about their difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_DRAWS, _SEED = 1000, 0
_TAIL = 2.5  # per cent beyond each end: 95 % lie within
_LEAST = 8  # questions; fewer say nothing about others


class Bootstrap:
    """Draws from questions, each with a number of positions; always the same draws."""

    def __init__(self, counts: Sequence[int]) -> None:
        """Args: counts: each question's positions."""
        questions = len(counts)
        generator = np.random.default_rng(_SEED)
        self._enough = questions >= _LEAST
        shares = np.full(questions, 1 / questions)
        self._draws = generator.multinomial(questions, shares, size=_DRAWS)
        self._counts = np.array(counts, np.float64)

    def interval(self, sums: Sequence[float]) -> tuple[float, float] | None:
        """Returns where 95 % of the draws have their mean over positions.

        Args:
            sums: each question's, over its positions.

        Returns:
            Both ends; None for too few questions, or figures that are no numbers.
        """
        values = np.array(sums, np.float64)
        if not self._enough or not np.isfinite(values).all():
            return None
        means = self._draws @ values / (self._draws @ self._counts)
        low, high = np.percentile(means, [_TAIL, 100 - _TAIL])
        return float(low), float(high)

    def margin(self, sums: Sequence[float], expected: Sequence[float]) -> float:
        """Returns how far a mean must exceed another so that 97.5 % of the draws agree.

        Args:
            sums: each question's, over its positions.
            expected: those of the other model.

        Returns:
            At least 0, which is also what too few questions give.
        """
        excess = [one - other for one, other in zip(sums, expected, strict=True)]
        ends = self.interval(excess)
        if ends is None:
            return 0.0
        return max(0.0, math.fsum(excess) / float(self._counts.sum()) - ends[0])
