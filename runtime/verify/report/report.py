"""What verify found: checks with their thresholds, answers, and a verdict."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from runtime.verify.check import Cause, Check

if TYPE_CHECKING:
    from convert.bundle.plan import Plan
    from runtime.verify.measure.answers import AnswerComparison
    from runtime.verify.measure.logits import Positions
    from runtime.verify.measure.sensitivity import Sensitivity

FORMAT = "minicpmv-verify-report"


@dataclass(frozen=True)
class TensorFormat:
    """How a bundle stores a tensor; what that loses is a check of stage `weights`."""

    name: str
    format: str
    shape: list[int]
    bits: float  # per value, scales and padding included
    why: str  # this format


@dataclass(frozen=True)
class Report:
    """The result of one verification."""

    bundle: str
    reference: str
    quantization: str
    kv_cache: str  # its format
    engine: str
    window: int
    longest_prompt: int  # ids, with its answer
    checks: list[Check]
    answers: list[AnswerComparison]
    seconds: float
    sensitivity: Sensitivity | None = None  # where it was measured
    causes: list[Cause] = field(default_factory=list)  # of the failures, the likeliest first
    warnings: list[str] = field(default_factory=list)
    tensors: list[TensorFormat] = field(default_factory=list)
    positions: Mapping[str, Positions] = field(default_factory=dict)  # by kind
    ran: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # what ran where
    earlier_cases: int = 0  # whose results an earlier run had measured

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

    @property
    def perplexity(self) -> dict[str, dict[str, float]]:
        """How unsure each model is of the known tokens, by kind of position; 1 is sure."""
        return {
            kind: {
                "reference": _perplexity(found.reference_nll_nats, found.predicted),
                "arithmetic": _perplexity(found.arithmetic.nll_nats, found.predicted),
                "bundle": _perplexity(found.bundle.nll_nats, found.predicted),
            }
            for kind, found in self.positions.items()
            if found.predicted
        }

    @property
    def has_noise_floor(self) -> bool:
        """Whether the reference ran in the checkpoint's own 16 bits, too."""
        return any(check.noise_floor is not None for check in self.checks)

    def shown(self) -> list[tuple[Check, int]]:
        """Returns one row per stage and figure: the check nearest to failing, and of how many."""
        rows: dict[tuple[str, str, str], list[Check]] = {}
        for check in self.checks:
            # Image, text and answer positions are told apart.
            name = check.name if check.stage == "logits" else ""
            rows.setdefault((check.stage, check.metric, name), []).append(check)
        return [(min(checks, key=lambda c: c.slack), len(checks)) for checks in rows.values()]

    def to_json(self) -> dict[str, Any]:
        """Returns the report as plain JSON values; figures that JSON cannot hold become text."""
        return {
            "format": FORMAT,
            "passed": self.passed,
            "failed_stages": self.failed_stages,
            "bundle": self.bundle,
            "reference": self.reference,
            "quantization": self.quantization,
            "kv_cache": self.kv_cache,
            "engine": self.engine,
            "window": self.window,
            "longest_prompt": self.longest_prompt,
            "overflows_window": self.longest_prompt > self.window,
            "seconds": round(self.seconds, 1),
            "earlier_cases": self.earlier_cases,
            "warnings": self.warnings,
            "causes": [asdict(cause) for cause in self.causes],
            "checks": [plain(asdict(c)) | {"passed": c.passed} for c in self.checks],
            "perplexity": plain(self.perplexity),
            "positions": {kind: plain(found.to_json()) for kind, found in self.positions.items()},
            "answers": [
                asdict(answer) | {"same": answer.same, "first_difference": answer.first_difference}
                for answer in self.answers
            ],
            "sensitivity": None if self.sensitivity is None else plain(asdict(self.sensitivity)),
            "tensors": [plain(asdict(tensor)) for tensor in self.tensors],
            "ran": {name: dict(about) for name, about in self.ran.items()},
        }


def stored_tensors(plan: Plan) -> list[TensorFormat]:
    """Returns how each tensor of a plan is stored."""
    return [
        TensorFormat(
            tensor.name,
            tensor.format,
            list(tensor.rule.shape),
            8 * tensor.nbytes / tensor.parameters,
            tensor.why,
        )
        for tensor in plan.tensors
    ]


def figure(value: float) -> str:
    """Returns a figure for people."""
    if math.isinf(value):
        return "exact" if value > 0 else "none"
    return f"{value:.4g}"


def shown_value(check: Check) -> str:
    """Returns a check's value for people, with its error bar."""
    if check.error_bar is None:
        return figure(check.value)
    low, high = (f"{end:.3g}" for end in check.error_bar)
    return f"{figure(check.value)} ({low} to {high})"


def shown_floor(check: Check) -> str:
    """Returns a check's noise floor for people; nothing where none was measured."""
    return "" if check.noise_floor is None else figure(check.noise_floor)


def bound(check: Check) -> str:
    """Returns a check's limit for people."""
    return f"{'≥' if check.higher_is_better else '≤'} {figure(check.threshold)}"


def plain(value: Any) -> Any:
    """Returns a value with floats that JSON has, rounded; others become text."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _perplexity(nll_nats: float, count: int) -> float:
    mean = nll_nats / count
    return math.inf if mean > math.log(sys.float_info.max) else math.exp(mean)
