"""The results of the cases: kept on disk, so that a run can resume, and merged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from convert.bundle.results_file import ResultsError, ResultsFile
from runtime.verify.cases import Case
from runtime.verify.check import Check
from runtime.verify.measure.answers import AnswerComparison
from runtime.verify.measure.logits import KINDS, Count, Logits, Positions

FORMAT, VERSION = "minicpmv-verify", 4


@dataclass(frozen=True)
class CaseResult:
    """What one case gave."""

    checks: list[Check]
    answer: AnswerComparison
    positions: Mapping[str, Positions]  # by kind
    tokens: Count  # of the prompt and its answer


@dataclass(frozen=True)
class Outcome:
    """The merged results of all cases."""

    checks: list[Check]
    answers: list[AnswerComparison]
    longest_prompt: int  # tokens
    positions: Mapping[str, Positions]


class Worst:
    """Keeps the worst case of each stage, which decides the verdict."""

    def __init__(self) -> None:
        self._checks: dict[tuple[str, str, str], Check] = {}

    def add(self, check: Check) -> None:
        """Keeps a check, or the one before of the same figure."""
        key = check.stage, check.name, check.metric
        old = self._checks.get(key)
        if old is None or check.slack < old.slack:
            self._checks[key] = check

    def checks(self) -> list[Check]:
        """Returns the worst of each, in the order of the stages."""
        return list(self._checks.values())


class ResultCache:
    """Results of earlier runs; this class keeps none."""

    reused = 0  # cases whose results an earlier run had measured

    def get(self, case: Case) -> CaseResult | None:
        """Returns what a case gave."""
        return None

    def add(self, case: Case, result: CaseResult) -> None:
        """Keeps what a case gave."""


class FileResultCache(ResultCache):
    """Results in a file."""

    def __init__(self, file: ResultsFile) -> None:
        """Args: file: whose header says what measured how."""
        self._file = file

    def get(self, case: Case) -> CaseResult | None:
        """See `ResultCache`.

        Raises:
            ResultsError: the line is not as it was written.
        """
        line = self._file.get(case.name, case.digest)
        if line is None:
            return None
        try:
            result = _read(line)
        except msgspec.ValidationError as error:
            raise ResultsError(
                f"{self._file.path}: the result of {case.name} is damaged: {error}; remove the file"
            ) from error
        self.reused += 1
        return result

    def add(self, case: Case, result: CaseResult) -> None:
        """See `ResultCache`."""
        self._file.add(case.name, case.digest, as_text(asdict(result)))


def merge(results: Sequence[CaseResult], thresholds: Mapping[str, float]) -> Outcome:
    """Puts together what the cases gave: the worst of each stage, the mean over all positions."""
    worst, logits = Worst(), Logits()
    for result in results:
        for check in result.checks:
            worst.add(check)
        logits.merge(result.positions)
    answers = [result.answer for result in results]
    checks = [*worst.checks(), *logits.checks(thresholds), _answers_check(answers, thresholds)]
    longest = max(result.tokens for result in results)
    positions = {kind: logits.positions[kind] for kind in KINDS if kind in logits.positions}
    return Outcome(checks, answers, longest, positions)


def _answers_check(answers: Sequence[AnswerComparison], thresholds: Mapping[str, float]) -> Check:
    value = sum(a.same for a in answers) / len(answers)
    expected = sum(a.reference == a.arithmetic for a in answers) / len(answers)
    limit = expected - thresholds["answers_margin"]
    half = [a.reference == a.half for a in answers if a.half is not None]
    floor = sum(half) / len(half) if len(half) == len(answers) else None
    return Check(
        "answers",
        "greedy",
        "same as reference",
        "",
        value,
        expected,
        limit,
        True,
        noise_floor=floor,
    )


def as_text(value: Any) -> Any:
    """Returns a value with floats that JSON has, none rounded; others become text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {name: as_text(inner) for name, inner in value.items()}
    return [as_text(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def as_numbers(value: Any) -> Any:
    """Returns a value with the floats that `as_text` spelled; of texts without any like them."""
    if isinstance(value, dict):
        return {name: as_numbers(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [as_numbers(inner) for inner in value]
    return float(value) if value in ("nan", "inf", "-inf") else value


def _read(line: Mapping[str, Any]) -> CaseResult:
    """Reads a result back; what is not of its type raises."""
    numbers = {name: as_numbers(line.get(name)) for name in ("checks", "positions")}
    return msgspec.convert({**line, **numbers}, CaseResult)
