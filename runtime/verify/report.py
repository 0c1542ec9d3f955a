"""What verify found: checks with their thresholds, answers, and a verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


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

    @property
    def passed(self) -> bool:
        """Says whether the value is on the right side of its threshold; NaN never is."""
        if self.higher_is_better:
            return self.value >= self.threshold
        return self.value <= self.threshold


@dataclass(frozen=True)
class Answer:
    """One conversation's greedy answers."""

    case: str
    question: str
    reference: str
    bundle: str
    arithmetic: str

    @property
    def same(self) -> bool:
        """Says whether the bundle answers what the reference answers."""
        return self.reference == self.bundle


@dataclass(frozen=True)
class Cause:
    """Where a difference comes from, as far as it could be isolated."""

    where: str  # e.g. `decoder layer 3`
    why: str  # one sentence for people


@dataclass(frozen=True)
class Report:
    """The result of one verification."""

    bundle: str
    reference: str
    quantization: str
    engine: str
    window: int
    longest_prompt: int  # ids, with its answer
    checks: list[Check]
    answers: list[Answer]
    seconds: float
    causes: list[Cause] = field(default_factory=list)  # of the failures, the likeliest first

    @property
    def failures(self) -> list[Check]:
        """The checks that did not pass."""
        return [check for check in self.checks if not check.passed]

    @property
    def passed(self) -> bool:
        """The verdict."""
        return not self.failures

    @property
    def failed_stages(self) -> list[str]:
        """The stages with a failure, in the order of the data."""
        return list(dict.fromkeys(check.stage for check in self.failures))

    def to_json(self) -> dict[str, Any]:
        """Returns the report as plain JSON values; figures that JSON cannot hold become text."""
        checks = [
            {name: _plain(value) for name, value in asdict(check).items()}
            | {"passed": check.passed}
            for check in self.checks
        ]
        return {
            "passed": self.passed,
            "failed_stages": self.failed_stages,
            "bundle": self.bundle,
            "reference": self.reference,
            "quantization": self.quantization,
            "engine": self.engine,
            "window": self.window,
            "longest_prompt": self.longest_prompt,
            "overflows_window": self.longest_prompt > self.window,
            "seconds": round(self.seconds, 1),
            "causes": [asdict(cause) for cause in self.causes],
            "checks": checks,
            "answers": [asdict(answer) | {"same": answer.same} for answer in self.answers],
        }


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return value
