"""What all benchmarks share: a question for the model, a row that cannot be asked, a score."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from convert.support.regular_file import read_regular
from quantize.errors import ToolkitError
from runtime.inputs.base64_text import base64_bytes
from runtime.inputs.picture import open_picture
from runtime.inputs.picture_format import PictureError
from runtime.inputs.prompt import PromptError, check_text

CHOICE_TOKENS, YES_NO_TOKENS, OPEN_TOKENS = 20, 100, 1024  # of answers, as OpenBMB's evaluation


class EvalDataError(ToolkitError):
    """A benchmark's files differ from the published format."""


class RowError(Exception):
    """A row that cannot be asked or scored, with the reason."""


@dataclass(frozen=True)
class BadRow:
    """A row that was left out."""

    row: str
    problem: str
    rows: int = 1  # rows it covers: a question may have several


@dataclass(frozen=True, kw_only=True)
class EvalItem:
    """A question as the model gets it."""

    key: str  # unique in the benchmark
    row: str  # its origin, for messages; a row may give several questions
    unit: str  # scored together: rotations of a question, questions of a picture
    category: str
    prompt: str
    picture: bytes | Path  # a file's content, or the file
    pictures: int = 1  # that belong to the question; the model sees the first
    max_new_tokens: int
    answer: Any  # the right one, in the form that the benchmark's rules expect
    kind: str = ""  # of question, where a benchmark has several
    options: Mapping[str, str] = field(default_factory=dict)  # by letter

    def __post_init__(self) -> None:
        """Raises RowError if a text is not valid Unicode."""
        try:
            for text in (self.key, self.prompt):
                check_text(text)
        except PromptError as error:
            raise RowError(str(error)) from error

    def open(self) -> Image.Image:
        """Decodes the picture.

        Raises:
            PictureError: it cannot be decoded as one.
        """
        return open_picture(self.picture)

    def digest(self) -> str:
        """Returns a hash by which an earlier run's answer is matched to this question."""
        content = self.picture
        if isinstance(content, Path):
            try:
                content = read_regular(content)
            except OSError as error:
                raise PictureError(f"{error.filename}: {error.strerror or error}") from error
        parts = [self.prompt.encode(), content, f"{self.max_new_tokens}".encode()]
        digest = hashlib.blake2b(digest_size=16)
        for part in parts:
            digest.update(len(part).to_bytes(8, "little") + part)
        return digest.hexdigest()


@dataclass(frozen=True)
class Questions:
    """A benchmark's questions.

    Every row of the files is accounted for: asked, left out, or beyond the limit.
    """

    items: list[EvalItem]
    bad: list[BadRow]
    name: str  # of the figure: a key of `configs/published.json`
    rows: int  # that the files hold
    beyond_limit: int = 0  # rows that the user did not ask for

    def __post_init__(self) -> None:
        """Checks that no row is lost or counted twice."""
        left_out = sum(bad.rows for bad in self.bad)
        if self.rows != rows_of(self.items) + left_out + self.beyond_limit:
            raise AssertionError(
                f"{self.rows} rows were read; {rows_of(self.items)} are asked, {left_out} left out "
                f"and {self.beyond_limit} beyond the limit"
            )

    def units(self) -> dict[str, list[EvalItem]]:
        """Returns the items grouped by unit."""
        found: dict[str, list[EvalItem]] = {}
        for item in self.items:
            found.setdefault(item.unit, []).append(item)
        return found

    def limited(self, limit: int) -> Questions:
        """Returns at most `limit` scored units, evenly spaced."""
        units = list(self.units().values())
        if limit >= len(units):
            return self
        items = [item for i in range(limit) for item in units[i * len(units) // limit]]
        beyond = rows_of(self.items) - rows_of(items)
        return replace(self, items=items, beyond_limit=beyond)


def rows_of(items: Iterable[EvalItem]) -> int:
    """Returns how many rows some questions come from."""
    return len({item.row for item in items})


@dataclass(frozen=True, kw_only=True)
class BenchmarkScore:
    """The score of a set of answers."""

    figure: float  # the benchmark's: percent, or MME's points
    parts: Mapping[str, float]  # by category
    scored: int  # units
    unread: int  # answers in which the rules find no choice: wrong, or guessed as the rules say
    several: tuple[int, float] | None = None  # questions with several pictures, percent right


def percent(right: Sequence[bool]) -> float:
    """Returns how many of a sequence are true, in percent; 0 for none."""
    return 100 * sum(right) / len(right) if right else 0.0


def by_category(judged: Sequence[tuple[EvalItem, bool]]) -> dict[str, float]:
    """Returns the percentage of right answers for each category."""
    found: dict[str, list[bool]] = {}
    for item, right in judged:
        found.setdefault(item.category, []).append(right)
    return {name: percent(found[name]) for name in sorted(found)}


def several_pictures(judged: Sequence[tuple[EvalItem, bool]]) -> tuple[int, float] | None:
    """Returns how many questions have several pictures, and the percentage right among them."""
    right = [is_right for item, is_right in judged if item.pictures > 1]
    return (len(right), percent(right)) if right else None


def score_of(judged: Sequence[tuple[EvalItem, bool]], unread: int) -> BenchmarkScore:
    """Scores what is right or wrong: the figure is the percentage of right answers.

    Args:
        judged: each scored unit's item, and whether its answer is right.
        unread: how many answers the rules find no choice in.
    """
    return BenchmarkScore(
        figure=percent([right for _, right in judged]),
        parts=by_category(judged),
        scored=len(judged),
        unread=unread,
        several=several_pictures(judged),
    )


def guess(item: EvalItem, choices: Sequence[str]) -> str:
    """Returns a choice at random, as some rules require; always the same for the same question."""
    return random.Random(item.key).choice(choices)


def decode_base64(text: str) -> bytes:
    """Decodes a picture's content.

    Raises:
        RowError: it is not base64.
    """
    try:
        return base64_bytes(text)
    except ValueError as error:
        raise RowError(f"the picture is no base64: {error}") from error


def cell(value: object) -> str:
    """Returns a cell's text; empty if there is none.

    Absent values and the `nan` that pandas writes for them count as empty, as in OpenBMB's
    evaluation, which reads with pandas. `None` and `NA` may be answers.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    text = str(value)
    return "" if text.strip() in ("nan", "NaN") else text


def unique(items: Sequence[EvalItem], bad: list[BadRow]) -> list[EvalItem]:
    """Returns the items without duplicate keys; later duplicates become bad rows."""
    seen: dict[str, EvalItem] = {}
    for item in items:
        if item.key in seen:
            bad.append(BadRow(item.row, f"has the id {item.key!r} of {seen[item.key].row}"))
        else:
            seen[item.key] = item
    return list(seen.values())
