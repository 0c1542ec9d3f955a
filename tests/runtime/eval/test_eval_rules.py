"""The benchmarks' rules, on answers worked out by hand from their published code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runtime.eval import cmmmu, mmbench, mme, mmmu
from runtime.eval.items import EvalItem

ANIMALS = {"A": "cat", "B": "dog", "C": "red panda", "D": "bird"}
NUMBERS = {"A": "8", "B": "16", "C": "24", "D": "32"}


def item(key: str, answer: Any, **more: Any) -> EvalItem:
    given: dict[str, Any] = {
        "key": key, "row": key, "unit": key, "category": "all", "prompt": "?",
        "picture": Path("none"), "max_new_tokens": 20, "answer": answer,
    }  # fmt: skip
    return EvalItem(**(given | more))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(C)", "C"),
        ("Answer: D", "D"),
        ("B. dog", "B"),
        ("b", None),
        ("A or B", None),
        ("the Red Panda is seen", "C"),
        ("a dog and a bird", None),
        ("A dog", "A"),  # the article is read as the option, as in the published rules
        ("It is a dog.", "B"),
        ("Sorry, I can't help with images of people yet.", "Z"),
        ("Z", "Z"),
        ("", None),
        ("fish", None),
        ("**D**", "D"),
    ],
)
def test_mmbench_reads_a_choice(answer: str, expected: str | None) -> None:
    assert mmbench.match(answer, ANIMALS) == expected


def test_mmbench_counts_a_question_if_all_rotations_are_right() -> None:
    items = [
        item("1", "A", unit="1", category="x", options=ANIMALS),
        item("1000001", "B", unit="1", category="x", options=ANIMALS),
        item("2", "C", unit="2", category="y", options=ANIMALS),
        item("1000002", "D", unit="2", category="y", options=ANIMALS),
        item("3", "C", unit="3", category="y", options=ANIMALS),
    ]
    answers = {"1": "A", "1000001": "B", "2": "C", "1000002": "C", "3": "none of these"}
    score = mmbench.score(items, answers)
    assert score.figure == pytest.approx(100 / 3)
    assert score.parts == {"x": 100.0, "y": 0.0}
    assert (score.scored, score.unread) == (3, 1)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes", "yes"),
        ("yes, there is", "yes"),
        ("No.", "no"),
        ("NO", "no"),
        ("Not", "no"),  # four characters count
        ("I think yes", None),
        (" Yes", "yes"),
        ("", None),
        ("There is no dog", None),
    ],
)
def test_mme_reads_the_beginning(answer: str, expected: str | None) -> None:
    assert mme.match(answer) == expected


def test_mme_adds_accuracy_and_accuracy_plus() -> None:
    """Of 3 pictures one is right in both questions, one in one: 50 + 33.3 points."""
    items, answers = [], {}
    for picture, said in enumerate([("Yes", "No"), ("Yes", "Yes"), ("No", "hm")]):
        for number, (expected, answer) in enumerate(zip(("yes", "no"), said, strict=True), 1):
            key = f"count/{picture}#{number}"
            items.append(item(key, expected, unit=f"count/{picture}", category="count"))
            answers[key] = answer
    items += [item(f"code/{n}", "yes", unit="code/1", category="code_reasoning") for n in "ab"]
    answers |= {"code/a": "yes", "code/b": "yes"}
    score = mme.score(items, answers)
    assert score.parts["count"] == pytest.approx(50 + 100 / 3)
    assert score.parts["code_reasoning"] == 200
    assert score.figure == score.parts["perception"] == pytest.approx(50 + 100 / 3)
    assert score.parts["cognition"] == 200
    assert (score.scored, score.unread) == (4, 1)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(C)", "C"),
        ("(A) is wrong, so (B)", "B"),
        ("A or C", "C"),
        ("The answer is D", "D"),
        ("A, (B)", "B"),  # brackets come first
        ("b", None),
        ("dog", None),  # a short answer is not searched for an option's text
        ("I see in the picture a dog", "B"),
        ("I see a dog and then a bird there", "D"),
        ("ABC", None),
        ("'C'", "C"),
    ],
)
def test_mmmu_reads_a_choice(answer: str, expected: str | None) -> None:
    assert mmmu.match(answer, ANIMALS) == expected


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("24", ["24"], True),
        ("The result is 24.0", ["24"], True),
        ("24.004", ["24"], True),
        ("24.01", ["24"], False),
        ("1,234 metres", ["1234"], True),
        ("it is 1.2e3", ["1200"], True),
        ("so x = 7", ["7"], True),
        ("The answer is Paris", ["paris"], True),
        ("Paris, France", ["Lyon", "Paris"], True),
        ("London", ["Paris"], False),
        ("vitamin d", ["D"], True),
        ("abcd", ["D"], False),  # a single character counts apart only
        ("", ["x"], False),
        ("124", ["24"], False),
    ],
)
def test_mmmu_reads_open_answers(answer: str, expected: list[str], right: bool) -> None:
    assert mmmu.is_right(expected, mmmu.open_answers(answer)) is right


def test_mmmu_guesses_where_nothing_is_chosen_and_counts_that() -> None:
    items = [
        item(f"validation_Art_{i}", "A", category="Art", options=NUMBERS, kind=mmmu.CHOICE)
        for i in range(400)
    ]
    score = mmmu.score(items, dict.fromkeys((i.key for i in items), "no idea"))
    assert score.unread == 400
    assert 18 < score.figure < 32, "one of four"
    assert mmmu.score(items, dict.fromkeys((i.key for i in items), "no idea")) == score


def test_mmmu_counts_questions_with_several_pictures_apart() -> None:
    items = [
        item("a", "A", options=NUMBERS, kind=mmmu.CHOICE, pictures=2),
        item("b", "B", options=NUMBERS, kind=mmmu.CHOICE, pictures=3),
        item("c", ["16"], kind=mmmu.OPEN),
    ]
    score = mmmu.score(items, {"a": "A", "b": "A", "c": "16"})
    assert score.several == (2, 50.0)
    assert score.figure == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("A", "A"),
        ("答案是B。", "B"),
        ("AC", "AC"),
        ("(A)(A)(B)", "A"),
        ("C、A", "AC"),
        ("我选择16", "B"),  # by the text
        ("不知道", None),
        ("ABCD，选C", "C"),
    ],
)
def test_cmmmu_reads_choices(answer: str, expected: str | None) -> None:
    assert cmmmu.match(answer, NUMBERS) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("对", "对"),
        ("正确。", "对"),
        ("错误", "错"),
        ("这个说法是错的。", "错"),
        ("陈述正确", "对"),
        ("不对", "对"),  # the published rules look for `对` first
        ("是否正确", None),
        ("不知道", None),
    ],
)
def test_cmmmu_reads_truth(answer: str, expected: str | None) -> None:
    assert cmmmu.truth(answer) == expected


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("3.5", "3.5", True),
        ("增减率为3.50%", "3.5", True),
        ("答案是乙", "乙", True),
        ("乙单位", "乙", True),
        ("甲", "乙", False),
        ("x=26", "26", True),
        ("126", "26", False),
        ("-4.2", "-4.2", True),
        ("乙" + "长" * 30, "乙", False),  # a text so long is no answer
        ("abcd乙", "乙", False),
    ],
)
def test_cmmmu_reads_blanks(answer: str, expected: str, right: bool) -> None:
    assert cmmmu.fills_blank(answer, expected) is right


def test_cmmmu_scores_all_three_types() -> None:
    items = [
        item("1", "AC", options=NUMBERS, kind=cmmmu.CHOICE, category="商业"),
        item("2", "A", options=NUMBERS, kind=cmmmu.CHOICE, category="商业"),
        item("3", "错", kind=cmmmu.TRUE_FALSE, category="科学"),
        item("4", "26", kind=cmmmu.BLANK, category="科学", pictures=2),
    ]
    score = cmmmu.score(items, {"1": "A和C", "2": "", "3": "错误", "4": "约为26"})
    assert score.figure == 75
    assert score.parts == {"商业": 50.0, "科学": 100.0}
    assert score.unread == 1, "nothing at all is not guessed"
    assert score.several == (1, 100.0)
