"""CMMMU: Chinese questions of 30 subjects: choice (one or several), true or false, blanks.

Prompts and rules are CMMMU-Benchmark/CMMMU's, eval/utils/eval_utils.py @ e1ba883; the prompts as
they stand in OpenBMB/MiniCPM-V, eval_mm/vlmevalkit `CMMMU` @ d8f382e.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from runtime.eval.items import (
    CHOICE_TOKENS,
    OPEN_TOKENS,
    YES_NO_TOKENS,
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

CHOICE, TRUE_FALSE, BLANK = "选择", "判断", "填空"
TRUE, FALSE = "对", "错"
_COLUMNS = ("id", "type", "question", "answer")
_LETTERS = "ABCD"
_TOKENS = {CHOICE: CHOICE_TOKENS, TRUE_FALSE: YES_NO_TOKENS, BLANK: OPEN_TOKENS}
_INSTRUCTIONS = {
    CHOICE: (
        "请回答上述多项选择题，并选出正确选项。这些题目可能包括单选和多选题型。"
        "如果所提供的信息不足以确定一个明确的答案，那么请根据可用的数据和你的判断来选择最可能正确的选项。"
    ),
    TRUE_FALSE: (
        "\n请回答上述判断题，并根据题目描述和所给的信息来判断问题中陈述的对错。"
        "如果信息不完整或不足以作出绝对判断，请运用你的逻辑推理和现有信息来做出最可能的判断。"
    ),
    BLANK: (
        "\n请回答上述填空题，并根据题目的要求和所提供的信息来给出最恰当的答案。"
        "如果信息不足以确切回答，那么请依据现有的数据和你的推理能力来填写最合理的答案。"
    ),
}
_BLANK_SIGNS = (
    "是", "为", "所以", "等于", "方案", "选择", "正确答案", "因此", "最后", "答案", "结果",
)  # fmt: skip
_TRUTH_SIGNS = ("是", "为", "所以", "判断", "陈述", "说法", "表达", "答案", "结果")
_YES = ("正确", "对", "准确", "肯定", "对的")
_NO = ("不对", "错误", "不正确", "不准确", "不合适", "否定", "错的", "错")
_AMBIGUOUS = ("对错", "是否正确", "否正确", "或者", "是否", "正确性", "对不")
_NUMBERS = (
    re.compile(r"-?\d{1,3}(?:，\d{3})+"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+)(?![eE][+-]?\d+)(?!，\d)"),
)
_MORE_CHARACTERS, _MORE_LETTERS = 20, 2  # beyond the right answer's; longer texts do not count


def read(path: Path) -> Questions:
    """Reads CMMMU's parquet files, or its JSON lines with the pictures beside them.

    Raises:
        EvalDataError: they differ from the published format.
    """
    return read_questions(path, _COLUMNS, _item, "cmmmu")


def score(items: Sequence[EvalItem], answers: Mapping[str, str]) -> BenchmarkScore:
    """Scores answers by key; if the rules find no choice, they guess, and it is counted."""
    judged, unread = [], 0
    for item in items:
        reply = answers[item.key]
        if item.kind == BLANK:
            judged.append((item, fills_blank(reply, item.answer)))
            continue
        is_choice = item.kind == CHOICE
        choice = match(reply, item.options) if is_choice else truth(reply)
        unread += choice is None
        if choice is None and (reply or not is_choice):  # an empty reply gets no guess
            choice = guess(item, list(item.options) if is_choice else (TRUE, FALSE))
        judged.append((item, choice == item.answer))
    return score_of(judged, unread)


def match(answer: str, options: Mapping[str, str]) -> str | None:
    """Returns the letters that an answer names most often, as `AC`; None if it names none.

    Args:
        answer: the model's.
        options: their texts by letter.
    """
    answer = strip_ends(answer)
    for counts in (
        {letter: answer.count(f"({letter})") for letter in options},
        {letter: answer.count(letter) for letter in options},
        {letter: answer.count(text) for letter, text in options.items()},
    ):
        most = max(counts.values())
        if most:
            return "".join(letter for letter, count in counts.items() if count == most)
    return None


def truth(answer: str) -> str | None:
    """Returns the verdict of an answer on a statement: `对`, `错`, or None if unclear."""
    parts = [part for part in _tails(answer, _TRUTH_SIGNS) if not _has(part, _AMBIGUOUS)]
    yes = sum(_has(part, _YES) for part in set(parts))
    no = sum(_has(part, _NO) and not _has(part, _YES) for part in set(parts))
    return TRUE if yes > no else FALSE if no > yes else None


def fills_blank(answer: str, expected: str) -> bool:
    """Says whether an answer has the right text or number."""
    tails = _tails(answer, _BLANK_SIGNS, last="=")
    numbers = [number for text in tails for form in _NUMBERS for number in form.findall(text)]
    given = [value for text in [*tails, *numbers] for value in _normalized(text, expected)]
    return one_is_right(given, _normalized(expected, expected))


def prompt(kind: str, question: str, options: Mapping[str, str]) -> str:
    """Returns what the model is asked."""
    if kind != CHOICE:
        return question + _INSTRUCTIONS[kind]
    lines = "".join(f"{letter}. {text}\n" for letter, text in options.items())
    return f"问题: {question}\nOptions:\n{lines}{_INSTRUCTIONS[kind]}"


def _tails(answer: str, signs: tuple[str, ...], last: str | None = None) -> list[str]:
    """Returns the parts after the signs; the whole answer if there are none."""
    whole = answer.strip("。").strip()
    return key_parts(re.split(r"。|\n", whole), signs, last) or [whole]


def _normalized(text: str, expected: str) -> list[str | float]:
    """Returns a number rounded to two places, or a text that is not much longer than expected."""
    text = text.strip()
    number = rounded(text)
    if number is not None:
        return [number]
    is_long = len(text) > len(expected) + _MORE_CHARACTERS
    return [] if is_long or _letters(text) > _letters(expected) + _MORE_LETTERS else [text]


def _letters(text: str) -> int:
    return sum(character.isascii() and character.isalpha() for character in text)


def _has(text: str, words: tuple[str, ...]) -> bool:
    return any(word in text for word in words)


def _item(row: Record, name: str, folder: Path) -> EvalItem:
    kind, question, answer = row["type"], row["question"], row["answer"]
    if not isinstance(kind, str) or kind not in _INSTRUCTIONS:
        raise RowError(f"its type is {kind!r:.40}; expected {', '.join(_INSTRUCTIONS)}")
    if not isinstance(question, str) or not cell(question).strip():
        raise RowError("there is no question")
    options: dict[str, str] = {}
    if kind == CHOICE:
        options = {letter: cell(row.get(f"option{i}")) for i, letter in enumerate(_LETTERS, 1)}
        empty = [letter for letter, text in options.items() if not text.strip()]
        if empty:
            raise RowError(f"there is no option {', '.join(empty)}")
    _check_answer(kind, answer)
    seen = pictures(row, folder)
    return EvalItem(
        key=str(row["id"]),
        row=name,
        unit=str(row["id"]),
        category=cell(row.get("category")) or "all",
        prompt=prompt(kind, question, options),
        picture=seen[0],
        pictures=len(seen),
        max_new_tokens=_TOKENS[kind],
        answer=answer,
        kind=kind,
        options=options,
    )


def _check_answer(kind: str, answer: object) -> None:
    """Raises RowError if an answer is invalid for its question type."""
    if kind == BLANK:
        is_right, expected = isinstance(answer, str) and bool(cell(answer).strip()), "a text"
    elif kind == TRUE_FALSE:
        is_right, expected = answer in (TRUE, FALSE), f"{TRUE} or {FALSE}"
    else:
        is_right = isinstance(answer, str) and re.fullmatch("A?B?C?D?", answer) is not None
        is_right, expected = is_right and bool(answer), "letters from A to D"
    if not is_right:
        raise RowError(f"its answer is {answer!r:.40}; expected {expected}")
