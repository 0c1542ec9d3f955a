"""A report's figures for a card: what all stages together cost."""

from __future__ import annotations

from convert.bundle.card import Accuracy
from convert.support.versions import TOOLKIT, VERSION
from runtime.verify.report.report import Report, figure, shown_floor, shown_value

_STAGES = ("vision features", "resampler", "hidden states", "LM head", "logits", "answers")


def accuracy(report: Report, noun: str) -> Accuracy:
    """Returns the figures that say most about the whole, each with what the recipe costs.

    Args:
        report: of one verification.
        noun: what the card calls the folder that was compared.
    """
    header = ["stage", "figure", TOOLKIT, "expected", *["noise floor"] * report.has_noise_floor]
    rows = []
    for check, _ in report.shown():
        # A figure "SQNR, same …" compares two ways to compute the same, not with the checkpoint.
        if check.stage not in _STAGES or check.metric.startswith("SQNR, same"):
            continue
        figure_of = f"{check.metric}, {check.unit}" if check.unit else check.metric
        row = [f"{check.stage}: {check.name}", figure_of, shown_value(check)]
        row += [figure(check.expected), shown_floor(check)]
        rows.append(row[: len(header)])
    verdict = "passed" if report.passed else f"failed in: {', '.join(report.failed_stages)}"
    where = f"engine {report.engine}, {_questions(len(report.answers))}"
    floor = ", *noise floor* what the checkpoint's own 16 bits cost" * report.has_noise_floor
    return Accuracy(
        f"`minicpmv verify` {VERSION} compared the {noun} with the checkpoint in float32 ({where}) "
        f"and **{verdict}**. *Expected* is what the recipe's arithmetic costs{floor}; in brackets "
        "are 95 % error bars.",
        header,
        rows,
    )


def _questions(count: int) -> str:
    return "1 question" if count == 1 else f"{count} questions"
