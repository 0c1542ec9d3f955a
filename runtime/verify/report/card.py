"""A report's figures for the card of a bundle: what all stages together cost."""

from __future__ import annotations

from convert.bundle.card import Accuracy
from convert.support.versions import TOOLKIT, VERSION
from runtime.verify.report.report import Report, figure, shown_floor, shown_value

_STAGES = ("vision features", "resampler", "hidden states", "LM head", "logits", "answers")


def accuracy(report: Report) -> Accuracy:
    """Returns the figures that say most about the whole, each with what the recipe costs."""
    rows = []
    for check, _ in report.shown():
        if check.stage not in _STAGES or check.metric == "SQNR, same arithmetic":
            continue
        figure_of = f"{check.metric}, {check.unit}" if check.unit else check.metric
        row = [f"{check.stage}: {check.name}", figure_of, shown_value(check)]
        rows.append([*row, figure(check.expected), shown_floor(check)])
    verdict = "passed" if report.passed else f"failed in: {', '.join(report.failed_stages)}"
    where = f"engine {report.engine}, {_questions(len(report.answers))}"
    return Accuracy(
        f"`minicpmv verify` {VERSION} compared the bundle with the checkpoint in float32 ({where}) "
        f"and **{verdict}**. *Expected* is what the recipe's arithmetic costs, *noise floor* what "
        "the checkpoint's own 16 bits cost; in brackets are 95 % error bars.",
        ["stage", "figure", TOOLKIT, "expected", "noise floor"],
        rows,
    )


def _questions(count: int) -> str:
    return "1 question" if count == 1 else f"{count} questions"
