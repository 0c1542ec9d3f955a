"""What the outputs of a stage lose, and how much they may."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from runtime.reference import metrics
from runtime.verify.check import Check
from runtime.verify.measure.results import Worst

# Their attention multiplies 16-bit words where a processor can, which the arithmetic's model leaves
# out: it is 58 dB and more from float32, and shows where a recipe keeps vision in float16.
_OF_PICTURES = ("vision encoder", "vision features", "resampler", "synthetic patterns")


class StageLosses(Worst):
    """Compares the outputs of stages, and keeps the worst of each."""

    same = "SQNR, same arithmetic"  # the figure that compares bundle and model directly

    def __init__(self, thresholds: Mapping[str, float]) -> None:
        super().__init__()
        self.thresholds = thresholds

    @property
    def least_same(self) -> float:
        """What the direct comparison must reach, dB."""
        return self.thresholds["same_arithmetic_db"]

    def reachable(self, stage: str, expected: float) -> float:
        """Returns what a bundle without a fault may fall to, before the margin, dB.

        Args:
            stage: whose outputs they are.
            expected: what the model of the arithmetic loses, dB.
        """
        exact = self.thresholds["picture_exact_db" if stage in _OF_PICTURES else "exact_db"]
        return min(expected, exact)

    def loss(
        self,
        stage: str,
        name: str,
        reference: Tensor,
        arithmetic: Tensor,
        bundle: Tensor,
        half: Tensor | None = None,
    ) -> None:
        """Compares a stage's outputs."""
        expected = metrics.sqnr_db(reference, arithmetic)
        detail = {
            "cosine": metrics.cosine(reference, bundle),
            "expected_cosine": metrics.cosine(reference, arithmetic),
            "max_difference": metrics.max_difference(reference, bundle),
        }
        floor = self.reachable(stage, expected) - self.thresholds["loss_margin_db"]
        value = metrics.sqnr_db(reference, bundle)
        noise = None if half is None else metrics.sqnr_db(reference, half)
        self.add(Check(stage, name, "SQNR", "dB", value, expected, floor, True, detail, noise))
        same = metrics.sqnr_db(arithmetic, bundle)
        self.add(Check(stage, name, self.same, "dB", same, math.inf, self.least_same, True))
