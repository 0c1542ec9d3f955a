"""MMBench: a TSV with pictures in base64; a question counts if every rotation is answered right.

Prompt and matching are those of the evaluation in OpenBMB/MiniCPM-V, eval_mm/vlmevalkit:
`TSVDataset.build_prompt` @ d58dcde and `can_infer` @ 65f5567, without a language model as judge.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from string import ascii_uppercase

from runtime.eval.files import read_text
from runtime.eval.items import (
    CHOICE_TOKENS,
    BadRow,
    BenchmarkScore,
    EvalDataError,
    EvalItem,
    Questions,
    RowError,
    cell,
    decode_base64,
    rows_of,
    score_of,
)

_COLUMNS = ("index", "question", "A", "B", "answer", "image")
_TURN = 1_000_000  # a rotation's index is the question's plus a multiple of this
_REFERENCE = 64  # characters; a shorter picture cell is the index of the row with the picture
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


@dataclass(frozen=True)
class _Row:
    """A row of the file."""

    name: str  # for people
    cells: Mapping[str, str]  # by column; empty where there is nothing
    index: int | None
    problem: str = ""  # why it cannot be read
    rows: int = 1  # that it stands for


def read(path: Path) -> Questions:
    """Reads an MMBench file with answers (`dev`), English or Chinese.

    If a file has no rotations, they are made: each option moves to the next letter, the last to A.

    Raises:
        EvalDataError: no such file, or columns are missing.
    """
    rows = _rows(path)
    has_turns = any(row.index is not None and row.index >= _TURN for row in rows)
    pictures = _pictures(rows)
    items: list[EvalItem] = []
    bad: list[BadRow] = []
    for row in rows:
        try:
            items += _items(row, pictures, turn=not has_turns)
        except RowError as error:
            bad.append(BadRow(row.name, str(error), row.rows))
    items = _whole(items, bad)
    chinese = sum(bool(_CHINESE.search(row.cells["question"])) for row in rows)
    name = "mmbench-zh" if 2 * chinese > len(rows) else "mmbench-en"
    return Questions(items, bad, name, sum(row.rows for row in rows))


def score(items: Sequence[EvalItem], answers: Mapping[str, str]) -> BenchmarkScore:
    """Scores answers by key: circular evaluation."""
    unread = 0
    units: dict[str, list[tuple[EvalItem, bool]]] = {}
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
    lowered = answer.lower()
    meant = [letter for letter, text in options.items() if text.lower() in lowered]
    return meant[0] if len(meant) == 1 else None


def _rows(path: Path) -> list[_Row]:
    """Returns the rows.

    Raises:
        EvalDataError: the file is not a TSV, lacks columns, or has an unclosed quote that swallows
            all rows after it.
    """
    csv.field_size_limit(_FIELD_BYTES)
    reader = csv.reader(StringIO(read_text(path), newline=""), delimiter="\t", strict=True)
    header: list[str] = []
    rows = []
    line = 1
    try:
        for number, values in enumerate(reader, 1):
            if not header:
                header = _header(path, values)
            elif values:
                rows.append(_row(f"{path.name} row {number}", header, values))
            line = reader.line_num + 1
    except csv.Error as error:
        raise EvalDataError(
            f"{path}: the row that begins in line {line} cannot be read: {error}; in a TSV a cell "
            "that begins with a quote ends with one, and quotes inside it are doubled"
        ) from error
    _header(path, header)
    return rows


def _header(path: Path, values: list[str]) -> list[str]:
    """Returns the columns' names."""
    missing = [name for name in _COLUMNS if values.count(name) != 1]
    if missing:
        raise EvalDataError(
            f"{path} row 1: no column {', '.join(missing)}, or several; expected MMBench's TSV "
            f"with {', '.join(_COLUMNS)} (the test files have no answers)"
        )
    return values


def _row(name: str, header: list[str], values: list[str]) -> _Row:
    """Returns a row; a short row is padded with empty cells, which are rejected later."""
    cells = {name: cell(text) for name, text in zip(header, values, strict=False)}
    cells = dict.fromkeys(header, "") | cells
    text = cells["index"].strip()
    index = int(text) if text.isascii() and text.isdigit() and len(text) < 15 else None
    name += f" (index {cells['index']:.20})"
    swallowed = sum(_swallowed(text, header, len(values)) for text in values)
    if swallowed:
        problem = f"a quote in it takes in the next {swallowed} rows: close it, or double it"
        return _Row(name, cells, index, problem, 1 + swallowed)
    if len(values) > len(header):
        return _Row(name, cells, index, f"it has {len(values)} cells; expected {len(header)}")
    return _Row(name, cells, index)


def _swallowed(text: str, header: list[str], cells: int) -> int:
    """Returns how many rows a cell swallowed because its quote closes only in a later row.

    Such a cell has the tabs of whole rows, and its lines have a number in the index column.
    """
    width = len(header) - 1
    if "\n" not in text or text.count("\t") + cells - 1 < 2 * width:
        return 0
    place = header.index("index")
    lines = [line.split("\t") for line in text.split("\n")[1:]]
    return sum(len(line) > place and line[place].strip().isdigit() for line in lines)


def _items(row: _Row, pictures: Mapping[int, list[str]], *, turn: bool) -> list[EvalItem]:
    index, cells = row.index, row.cells
    if row.problem:
        raise RowError(row.problem)
    if index is None:
        raise RowError("its index is no number")
    if not cells["question"].strip():
        raise RowError("there is no question")
    options = {letter: cells[letter] for letter in ascii_uppercase if cells.get(letter, "").strip()}
    letters = list(options)
    if len(letters) < 2 or letters != list(ascii_uppercase[: len(letters)]):
        raise RowError(f"its options are {', '.join(letters) or 'missing'}; expected A, B, …")
    answer = cells["answer"].strip()
    if answer not in options:
        raise RowError(f"its answer is {answer!r:.40}; expected one of {', '.join(letters)}")
    picture = _picture(cells["image"], pictures)
    category = cells.get("l2-category") or cells.get("category") or ""
    made = []
    for shift in range(len(letters) if turn else 1):
        moved = {letters[(i + shift) % len(letters)]: options[a] for i, a in enumerate(letters)}
        turned = {letter: moved[letter] for letter in letters}
        made.append(
            EvalItem(
                key=str(index + shift * _TURN),
                row=row.name,
                unit=str(index % _TURN),
                category=category,
                prompt=prompt(cells["question"], turned, cells.get("hint", "")),
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


def _pictures(rows: Sequence[_Row]) -> dict[int, list[str]]:
    """Returns the rows' pictures by index; an index may occur more than once."""
    found: dict[int, list[str]] = {}
    for row in rows:
        if row.index is not None and len(row.cells["image"]) > _REFERENCE:
            found.setdefault(row.index, []).append(row.cells["image"])
    return found


def _picture(text: str, pictures: Mapping[int, list[str]]) -> bytes:
    """Returns a picture, the row's own or that of the row whose index it gives."""
    name = text.strip()
    if len(name) <= _REFERENCE:
        referred = pictures.get(int(name), []) if name.isascii() and name.isdigit() else []
        if not referred:
            raise RowError(f"there is no picture; it names the row {name!r:.40}")
        if len(referred) > 1:
            raise RowError(f"its picture is that of the row {name}, whose index comes twice")
        text = referred[0]
    return decode_base64(text)


def _whole(items: list[EvalItem], bad: list[BadRow]) -> list[EvalItem]:
    """Leaves out questions that lack rotations or have a duplicate index."""
    units: dict[str, list[EvalItem]] = {}
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
            problem = f"the question is left out: {problem}"
            bad.append(BadRow(unit[0].row, problem, rows_of(unit)))
    return kept
