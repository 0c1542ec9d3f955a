"""MMBench: a TSV with pictures in base64; a question counts if every rotation is answered right.

Prompt and matching are those of the evaluation in OpenBMB/MiniCPM-V, eval_mm/vlmevalkit:
`TSVDataset.build_prompt` @ d58dcde and `can_infer` @ 65f5567, without a language model as judge.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase

from runtime.eval.items import (
    CHOICE_TOKENS,
    BadRow,
    EvalDataError,
    Item,
    Questions,
    RowError,
    Score,
    decode_base64,
    score_of,
)

_COLUMNS = ("index", "question", "A", "B", "answer", "image")
_TURN = 1_000_000  # a rotation's index is the question's plus a multiple of this
_REFERENCE = 64  # a picture that is no longer than this is the index of the row that has it
_FIELD_BYTES = 1 << 28
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_NONE = "Z"  # no option
_MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_CHINESE = re.compile(r"[\u4e00-\u9fff]")

Row = Mapping[str, str]


def read(path: Path) -> Questions:
    """Reads an MMBench file with answers (`dev`), English or Chinese.

    A file without rotations gets them: each option moves on by one letter, the last to A.

    Raises:
        EvalDataError: no such file, or columns are missing.
    """
    numbered = list(_rows(path))
    has_turns = any(_index(row) >= _TURN for _, row in numbered)
    pictures = {row["index"].strip(): row["image"] for _, row in numbered}
    items: list[Item] = []
    bad: list[BadRow] = []
    for number, row in numbered:
        name = f"{path.name} row {number} (index {row['index']:.20})"
        try:
            items += _items(row, name, pictures, turn=not has_turns)
        except RowError as error:
            bad.append(BadRow(name, str(error)))
    items = _whole(items, bad)
    chinese = sum(bool(_CHINESE.search(row["question"])) for _, row in numbered)
    return Questions(items, bad, "mmbench-zh" if 2 * chinese > len(numbered) else "mmbench-en")


def score(items: Sequence[Item], answers: Mapping[str, str]) -> Score:
    """Scores answers by key: circular evaluation."""
    unread = 0
    units: dict[str, list[tuple[Item, bool]]] = {}
    for item in items:
        choice = match(answers[item.key], item.options)
        unread += choice is None
        units.setdefault(item.unit, []).append((item, choice == item.answer))
    judged = [(unit[0][0], all(right for _, right in unit)) for unit in units.values()]
    return score_of(judged, unread)


def match(answer: str, options: Mapping[str, str]) -> str | None:
    """Returns the letter that an answer chooses; None if it chooses none or several.

    Args:
        answer: the model's.
        options: their texts by letter.
    """
    if any(refusal in answer for refusal in _REFUSALS):
        return _NONE
    words = answer.translate(_MARKS).split()
    letters = [letter for letter in options if letter in words]
    if len(letters) == 1:
        return letters[0]
    if not letters and _NONE in words:
        return _NONE
    said = answer.lower()
    meant = [letter for letter, text in options.items() if text.lower() in said]
    return meant[0] if len(meant) == 1 else None


def _rows(path: Path) -> list[tuple[int, Row]]:
    """Returns the rows by their number; the header is row 1."""
    csv.field_size_limit(_FIELD_BYTES)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t", restval="")
            missing = [name for name in _COLUMNS if name not in (reader.fieldnames or [])]
            if missing:
                raise EvalDataError(
                    f"{path} row 1: no column {', '.join(missing)}; expected MMBench's TSV with "
                    f"{', '.join(_COLUMNS)} (the test files have no answers)"
                )
            return [(i, row) for i, row in enumerate(reader, 2)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EvalDataError(f"{path}: cannot be read as MMBench's TSV: {error}") from error


def _index(row: Row) -> int:
    """Returns a row's index; 0 where it is none, which is found later."""
    text = row["index"].strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 15 else 0


def _items(row: Row, name: str, pictures: Mapping[str, str], *, turn: bool) -> list[Item]:
    index = row["index"].strip()
    if not (index.isascii() and index.isdigit() and len(index) < 15):
        raise RowError("its index is no number")
    if not row["question"].strip():
        raise RowError("there is no question")
    options = {letter: row[letter] for letter in ascii_uppercase if row.get(letter, "").strip()}
    letters = list(options)
    if len(letters) < 2 or letters != list(ascii_uppercase[: len(letters)]):
        raise RowError(f"its options are {', '.join(letters) or 'missing'}; expected A, B, …")
    answer = row["answer"].strip()
    if answer not in options:
        raise RowError(f"its answer is {answer!r:.40}; expected one of {', '.join(letters)}")
    picture = _picture(row["image"], pictures)
    unit = str(int(index) % _TURN)
    category = row.get("l2-category") or row.get("category") or ""
    made = []
    for shift in range(len(letters) if turn else 1):
        moved = {letters[(i + shift) % len(letters)]: options[a] for i, a in enumerate(letters)}
        turned = {letter: moved[letter] for letter in letters}
        made.append(
            Item(
                key=str(int(index) + shift * _TURN),
                row=name,
                unit=unit,
                category=category,
                prompt=prompt(row["question"], turned, row.get("hint", "")),
                picture=picture,
                max_new_tokens=CHOICE_TOKENS,
                answer=letters[(letters.index(answer) + shift) % len(letters)],
                options=turned,
            )
        )
    return made


def prompt(question: str, options: Mapping[str, str], hint: str) -> str:
    """Returns what the model is asked."""
    lines = [f"Hint: {hint}\n"] if hint.strip() else []
    lines += [f"Question: {question}\n", "Options:\n"]
    lines += [f"{letter}. {text}\n" for letter, text in options.items()]
    return "".join([*lines, "Please select the correct answer from the options above. \n"])


def _picture(text: str, pictures: Mapping[str, str]) -> bytes:
    """Returns a picture, the row's own or that of the row whose index it gives."""
    if len(text.strip()) <= _REFERENCE:
        referred = pictures.get(text.strip(), "")
        if len(referred) <= _REFERENCE:
            raise RowError(f"there is no picture; it names the row {text.strip()!r:.40}")
        text = referred
    return decode_base64(text)


def _whole(items: list[Item], bad: list[BadRow]) -> list[Item]:
    """Leaves out questions that lack rotations, or whose index comes twice."""
    units: dict[str, list[Item]] = {}
    for item in items:
        units.setdefault(item.unit, []).append(item)
    kept = []
    for unit in units.values():
        keys = {item.key for item in unit}
        expected = len(unit[0].options)
        if len(keys) == len(unit) == expected:
            kept += unit
        else:
            problem = f"{len(keys)} of {expected} rotations"
            if len(keys) < len(unit):
                problem = "an index comes twice"
            bad.append(BadRow(unit[0].row, f"the question is left out: {problem}"))
    return kept
