"""Error bars over questions, and what a verdict makes of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from runtime.verify.check import Check
from runtime.verify.measure.bootstrap import Bootstrap
from runtime.verify.measure.logits import Logits, Positions, Sums
from runtime.verify.measure.run import load_settings
from runtime.verify.report.report import shown_value

COUNT = 20  # positions of a question
THRESHOLDS = load_settings()["thresholds"]


def test_an_interval_is_that_of_the_mean() -> None:
    """The standard error of a mean of n values is their deviation by the root of n."""
    values = np.random.default_rng(3).normal(5, 2, 400)
    found = Bootstrap([1] * 400).interval(values.tolist())
    assert found is not None
    low, high = found
    error = values.std() / math.sqrt(400)
    assert (low, high) == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.25 * error
    )
    assert found == Bootstrap([1] * 400).interval(values.tolist()), "the same each time"


def test_a_mean_is_over_positions() -> None:
    counts, means = [1, 9] * 5, [3.0, 1.0] * 5
    sums = [count * mean for count, mean in zip(counts, means, strict=True)]
    found = Bootstrap(counts).interval(sums)
    assert found is not None and found[0] < (3 + 9) / 10 < found[1] < 2


def test_what_both_have_is_no_difference() -> None:
    """Questions differ much, but each model loses the same share more in all of them."""
    expected = [float(i**2) for i in range(12)]
    bars = Bootstrap([1] * 12)
    assert bars.margin([x + 1 for x in expected], expected) == pytest.approx(0, abs=1e-9)
    assert bars.margin(expected, expected) == 0
    apart = bars.interval(expected)
    assert apart is not None and apart[1] - apart[0] > 20


@pytest.mark.parametrize("sums", [[1.0, 2.0] * 3, [math.nan] * 12, [1.0] * 11 + [math.inf], [1.0]])
def test_nothing_is_said_of_few_questions_or_no_numbers(sums: list[float]) -> None:
    bars = Bootstrap([1] * len(sums))
    assert bars.interval(sums) is None
    assert bars.margin(sums, [0.0] * len(sums)) == 0


def checks(
    bundle: Sequence[float], arithmetic: Sequence[float], top1: Sequence[int] | None = None
) -> tuple[Check, Check]:
    """Returns the figures of questions with a KL divergence and, of `COUNT`, same choices each."""
    logits = Logits()
    for i, (one, other) in enumerate(zip(bundle, arithmetic, strict=True)):
        expected = Sums((other,) * COUNT, COUNT, 5 * COUNT, 0.0)
        same = COUNT if top1 is None else top1[i]
        found = replace(expected, kl=(one,) * COUNT, top1=same)
        logits.merge({"text": Positions(COUNT, 0, 0.0, expected, found)})
    kl, same_top1 = logits.checks(THRESHOLDS)
    return kl, same_top1


def test_a_loss_in_every_question_is_found() -> None:
    """As it was without error bars: however much the questions differ."""
    expected = [0.01 * (1 + i) for i in range(12)]
    for factor, passed in ((1.2, True), (1.5, False)):
        kl, _ = checks([factor * x for x in expected], expected)
        mean = sum(expected) / 12
        assert kl.threshold == pytest.approx(1.25 * mean + 0.002, rel=0.1)
        assert kl.passed == passed
        assert kl.error_bar is not None
        assert kl.error_bar[0] < kl.value < kl.error_bar[1]


def test_a_loss_in_half_of_the_questions_is_found() -> None:
    """A fault of one language."""
    kl, _ = checks([0.04, 0.08] * 6, [0.04] * 12)
    assert not kl.passed


def test_a_difference_within_its_error_bar_does_not_count() -> None:
    """One question of twelve is worse, and the others a little better."""
    kl, _ = checks([0.6] + [0.038] * 11, [0.04] * 12)
    assert kl.value > 1.25 * kl.expected + 0.002
    assert kl.passed
    few, _ = checks([0.6] + [0.038] * 5, [0.04] * 6)
    assert not few.passed, "of few questions nothing excuses it"


def test_no_number_is_never_excused() -> None:
    for bad in (math.nan, math.inf):
        kl, _ = checks([bad] + [0.04] * 11, [0.04] * 12)
        assert not kl.passed and kl.error_bar is None


def test_choices_are_judged_likewise() -> None:
    _, everywhere = checks([0.0] * 12, [0.0] * 12, [18] * 12)
    _, once = checks([0.0] * 12, [0.0] * 12, [8] + [20] * 11)
    assert (everywhere.passed, once.passed) == (False, True)
    assert (everywhere.threshold, once.value) == (pytest.approx(0.97), pytest.approx(0.95))


def test_percentiles_are_of_positions() -> None:
    values = np.random.default_rng(1).permutation(1000) / 1000
    found = Sums(tuple(values.tolist()), 0, 0, 0.0).percentiles
    assert found == {"50": 0.499, "95": 0.949, "99": 0.989, "99.9": 0.998}
    assert sum(Sums(tuple(values.tolist()), 0, 0, 0.0).histogram) == 1000


def test_an_error_bar_is_shown() -> None:
    kl, _ = checks([0.1, 0.2] * 6, [0.1] * 12)
    assert kl.error_bar is not None
    low, high = kl.error_bar
    assert shown_value(kl) == f"0.15 ({low:.3g} to {high:.3g})"
    assert shown_value(replace(kl, error_bar=None)) == "0.15"
