"""MMMU: questions of 30 subjects, multiple choice and open.

The prompt is that of the evaluation in OpenBMB/MiniCPM-V, eval_mm/vlmevalkit `MiniCPM_V` @ 65f5567,
its run of blanks included; the rules are MMMU-Benchmark/MMMU, eval/eval_utils.py @ 44b45b5.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from runtime.eval.items import (
    CHOICE_TOKENS,
    BenchmarkScore,
    EvalItem,
    Questions,
    RowError,
    cell,
    guess,
    score_of,
)
from runtime.eval.matching import key_parts, one_is_right, rounded, strip_ends
from runtime.eval.records import Record, pictures, read_questions

CHOICE, OPEN = "multiple-choice", "open"
_COLUMNS = ("id", "question", "options", "answer", "question_type")
_INSTRUCTION = (
    "Study the image carefully and pick the option associated with the correct answer. "
    + " " * 16
    + "Focus solely on selecting the option and avoid including any other content.\n"
)
_LONG = 5  # words; only longer answers are searched for an option's text
_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # 1,234
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),  # 1.2e3
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def read(path: Path) -> Questions:
    """Reads MMMU's parquet files or JSON.

    Raises:
        EvalDataError: they differ from the published format.
    """
    return read_questions(path, _COLUMNS, _item, "mmmu")


def score(items: Sequence[EvalItem], answers: Mapping[str, str]) -> BenchmarkScore:
    """Scores answers by key; if the rules find no choice, they guess, and it is counted."""
    judged, unread = [], 0
    for item in items:
        reply = answers[item.key]
        if item.kind == OPEN:
            judged.append((item, is_right(item.answer, open_answers(reply))))
            continue
        choice = match(reply, item.options)
        unread += choice is None
        judged.append((item, (choice or guess(item, list(item.options))) == item.answer))
    return score_of(judged, unread)


def match(answer: str, options: Mapping[str, str]) -> str | None:
    """Returns the letter that an answer chooses; if it names several, the last one.

    Args:
        answer: the model's.
        options: their texts by letter.
    """
    answer = f" {strip_ends(answer)} "
    for form in ("({})", " {} "):
        places = {letter: answer.rfind(form.format(letter)) for letter in options}
        found = {letter: place for letter, place in places.items() if place >= 0}
        if found:
            return max(found, key=lambda letter: found[letter])
    if len(answer.split()) <= _LONG:
        return None
    lowered = answer.lower()
    found = {
        k: lowered.rfind(text.lower()) for k, text in options.items() if text.lower() in lowered
    }
    return max(found, key=lambda letter: found[letter]) if found else None


def open_answers(answer: str) -> list[str | float]:
    """Returns what an answer to an open question may mean: texts, and numbers."""
    whole = answer.strip().strip(".").lower()
    found = key_parts(whole.split("\n"), _INDICATORS, last="=") or [whole]
    numbers = [number for text in found for form in _NUMBERS for number in form.findall(text)]
    return [value for text in [*found, *numbers] for value in normalized(text)]


def normalized(text: str) -> list[str | float]:
    """Returns a number rounded to two places, or the text in lower case.

    A single character gets a blank before or after it, so that it does not match inside words.
    """
    text = text.strip().lower()
    number = rounded(text)
    if number is not None:
        return [number]
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def is_right(expected: Sequence[str], given: Sequence[str | float]) -> bool:
    """Returns whether one of the given values is, or holds, one of the right answers."""
    return one_is_right(given, [value for text in expected for value in normalized(text)])


def prompt(question: str, options: Mapping[str, str]) -> str:
    """Returns what the model is asked; tags such as `<image 1>` stay in the text."""
    if not options:
        return f"{question}\n"
    lines = "".join(f"{letter}. {text}\n" for letter, text in options.items())
    return f"{_INSTRUCTION}{question}\nOptions:\n{lines}"


def _item(row: Record, name: str, folder: Path) -> EvalItem:
    question, kind = row["question"], row["question_type"]
    if not isinstance(question, str) or not cell(question).strip():
        raise RowError("there is no question")
    if kind not in (CHOICE, OPEN):
        raise RowError(f"its question_type is {kind!r:.40}; expected {CHOICE} or {OPEN}")
    texts = _list(row["options"], "options") if kind == CHOICE else []
    options = dict(zip(ascii_uppercase, texts, strict=False))
    if kind == CHOICE and not 2 <= len(texts) <= len(ascii_uppercase):
        raise RowError(f"it has {len(texts)} options")
    if any(not text.strip() for text in options.values()):
        raise RowError("an option is empty")
    answer = row["answer"]
    if kind == CHOICE and answer not in list(options):  # it may be a list
        raise RowError(f"its answer is {answer!r:.40}; expected one of {', '.join(options)}")
    seen = pictures(row, folder)
    return EvalItem(
        key=str(row["id"]),
        row=name,
        unit=str(row["id"]),
        category="_".join(str(row["id"]).split("_")[1:-1]) or "all",
        prompt=prompt(question, options),
        picture=seen[0],
        pictures=len(seen),
        max_new_tokens=CHOICE_TOKENS,
        answer=answer if kind == CHOICE else _answers(answer),
        kind=kind,
        options=options,
    )


def _answers(answer: Any) -> list[str]:
    """Returns the right answers to an open question: one, or the Python list of several."""
    if isinstance(answer, str) and answer.startswith("["):
        several = _list(answer, "answer")
    else:
        several = (
            [cell(answer)] if isinstance(answer, (str, int, float)) else _list(answer, "answer")
        )
    if not several or any(text.strip() in ("", "?") for text in several):
        raise RowError(
            f"its answer is {answer!r:.40}; expected a text (the test split has no answers)"
        )
    return several


def _list(value: Any, what: str) -> list[str]:
    """Returns a list of texts, given as such or, as in the parquet files, as Python writes it."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            raise RowError(f"its {what} is no list: {value!r:.60}") from error
    if not isinstance(value, list) or any(
        not isinstance(text, (str, int, float)) for text in value
    ):
        raise RowError(f"its {what} is {value!r:.60}; expected a list of texts")
    return [text if isinstance(text, str) else cell(text) for text in value]
