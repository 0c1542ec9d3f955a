"""One measured figure with its threshold, and where a failed one comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Check:
    """One measured figure of one stage."""

    stage: str  # e.g. `decoder layers`
    name: str  # e.g. `layer 3`
    metric: str  # e.g. `SQNR`
    unit: str
    value: float  # of the bundle
    expected: float  # of the arithmetic's model, or the ideal
    threshold: float
    higher_is_better: bool
    detail: Mapping[str, float] = field(default_factory=dict)
    # The reference's own figure in the checkpoint's 16 bits; None where it was not measured.
    noise_floor: float | None = None
    # Where the value lies with 95 % of other questions of the kind; None where it is no mean.
    error_bar: tuple[float, float] | None = None

    @property
    def passed(self) -> bool:
        """Says whether the value is on the right side of its threshold; NaN never is."""
        if self.higher_is_better:
            return self.value >= self.threshold
        return self.value <= self.threshold

    @property
    def slack(self) -> float:
        """How far the check is from failing; less than 0 if it failed."""
        if math.isnan(self.value):
            return -math.inf
        return (1 if self.higher_is_better else -1) * (self.value - self.threshold)


@dataclass(frozen=True)
class Cause:
    """Where a difference comes from, as far as it could be isolated."""

    where: str  # e.g. `decoder layer 3`
    why: str  # one sentence for people
