"""The picture of the pipeline: each stage with its figures, laid out for a narrow screen."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.verify.check import Check
from runtime.verify.report.report import Report, bound, figure

WIDTH = 320  # of the picture; a unit is a pixel on the smallest phone
_LEFT, _RIGHT = 1, 319  # of boxes
_HEAD, _LINE, _FOOT, _GAP = 24, 17, 8, 18  # heights in a box, and between two
_ENTRIES = {"preprocessing": "picture", "prompt embeddings": "question"}
# Stages that no data goes through on its way to an answer stand apart, above.
_APART = (
    *("files", "weights", "codes", "tokenizer", "settings", "golden answers"),
    *("synthetic patterns", "sliding window"),
)
_LAST = ("logits", "sampling", "answers")
_SHORT = {  # of figures that are too long for a line
    "SQNR, same arithmetic": "same arithmetic",
    "SHA-256 as written": "as written",
    "KL divergence": "KL",
}
_UNITS = ("dB", "nats")


@dataclass(frozen=True)
class Line:
    """One figure in a box."""

    label: str
    value: str
    passed: bool
    y: int


@dataclass(frozen=True)
class Box:
    """One stage."""

    stage: str
    lines: list[Line]
    passed: bool
    y: int
    height: int
    entry: str | None  # what comes in here from outside
    follows: bool  # an arrow comes from the stage above


@dataclass(frozen=True)
class Pipeline:
    """All stages, and the size of their picture."""

    boxes: list[Box]
    width: int
    height: int
    left: int = _LEFT
    right: int = _RIGHT


def pipeline(report: Report) -> Pipeline:
    """Lays out the stages from top to bottom."""
    stages: dict[str, list[tuple[Check, int]]] = {}
    for check, count in report.shown():
        stages.setdefault(check.stage, []).append((check, count))
    boxes: list[Box] = []
    y = 1
    for stage, rows in sorted(stages.items(), key=lambda item: _order(item[0])):
        lines: list[Line] = []
        for check, count in rows:
            at = y + _HEAD + _LINE * len(lines) + 13
            lines.append(Line(_label(check, count), _value(check), check.passed, at))
        height = _HEAD + _LINE * len(lines) + _FOOT
        follows = bool(boxes) and boxes[-1].stage not in _APART
        passed = all(line.passed for line in lines)
        boxes.append(Box(stage, lines, passed, y, height, _ENTRIES.get(stage), follows))
        y += height + _GAP
    return Pipeline(boxes, WIDTH, y - _GAP + 1)


def _order(stage: str) -> int:
    if stage in _APART:
        return _APART.index(stage) - len(_APART)
    return 1 + _LAST.index(stage) if stage in _LAST else 0  # in the order of the checks


def _label(check: Check, count: int) -> str:
    name = _SHORT.get(check.metric, check.metric)
    if check.stage == "logits":
        return f"{name}, {check.name.removeprefix('at ')}"
    return f"{name}, worst of {count}" if count > 1 else name


def _value(check: Check) -> str:
    unit = f" {check.unit}" if check.unit in _UNITS else ""
    return f"{figure(check.value)}{unit} ({bound(check)})"
