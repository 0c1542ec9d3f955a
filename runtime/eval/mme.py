"""MME: a folder for each task, two yes/no questions for each picture, accuracy and accuracy+.

The files are those of MME's release, the rules those of its `eval_tool/calculation.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from runtime.eval.files import child, files_with, read_text
from runtime.eval.items import (
    YES_NO_TOKENS,
    BadRow,
    BenchmarkScore,
    EvalDataError,
    EvalItem,
    Questions,
    percent,
)

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark",
    "artwork", "OCR",
)  # fmt: skip
COGNITION = (
    "commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning",
)  # fmt: skip
# Some tasks hold pictures and texts side by side, others in two folders.
_TEXTS, _PICTURES = "questions_answers_YN", "images"
_SUFFIXES = (".jpg", ".png", ".jpeg")
_PER_PICTURE = 2
_PREFIX = 4  # characters of an answer that count
YES, NO = "yes", "no"


def read(path: Path) -> Questions:
    """Reads MME's folder; tasks may be missing.

    Raises:
        EvalDataError: the folder has no task.
    """
    tasks = {name: child(path, name) for name in (*PERCEPTION, *COGNITION)}
    tasks = {name: folder for name, folder in tasks.items() if folder.is_dir()}
    if not tasks:
        raise EvalDataError(
            f"{path}: no folder of a task of MME; expected {', '.join(PERCEPTION[:3])}, …"
        )
    items: list[EvalItem] = []
    bad: list[BadRow] = []
    rows = 0
    for name, folder in tasks.items():
        rows += _read_task(name, folder, items, bad)
    return Questions(items, bad, "mme", rows)


def score(items: Sequence[EvalItem], answers: Mapping[str, str]) -> BenchmarkScore:
    """Scores answers by key; the figure is the sum over the tasks of perception."""
    units: dict[str, list[tuple[EvalItem, bool]]] = {}
    unread = 0
    for item in items:
        choice = match(answers[item.key])
        unread += choice is None
        units.setdefault(item.unit, []).append((item, choice == item.answer))
    points = {}
    for task in (*PERCEPTION, *COGNITION):
        pairs = [[right for _, right in u] for u in units.values() if u[0][0].category == task]
        if pairs:
            each = percent([right for pair in pairs for right in pair])
            points[task] = each + percent([all(pair) for pair in pairs])
    perception = sum(points.get(task, 0.0) for task in PERCEPTION)
    cognition = sum(points.get(task, 0.0) for task in COGNITION)
    return BenchmarkScore(
        figure=perception,
        parts={"perception": perception, "cognition": cognition, **points},
        scored=len(units),
        unread=unread,
    )


def match(answer: str) -> str | None:
    """Returns the `yes` or `no` that an answer begins with; None if neither."""
    start = answer.lower()[:_PREFIX]
    return YES if YES in start else NO if NO in start else None


def _read_task(task: str, folder: Path, items: list[EvalItem], bad: list[BadRow]) -> int:
    """Reads a task's questions; returns how many rows it has: pictures, or texts."""
    texts, pictures = child(folder, _TEXTS), child(folder, _PICTURES)
    if not texts.is_dir():
        texts = pictures = folder
    seen: dict[str, str] = {}  # texts' names by what they ask about
    files = files_with(texts.iterdir(), (".txt",))
    shown = files_with(pictures.iterdir(), _SUFFIXES) if pictures.is_dir() else []
    if not files:
        bad.append(BadRow(task, "there are no questions", 0))
    for text in files:
        stem = text.stem.lower()
        if stem in seen:
            problem = f"is about the picture of {seen[stem]}, which has its questions"
            bad.append(BadRow(f"{task}/{text.name}", problem))
        else:
            found = [p for p in shown if p.stem.lower() == stem]
            items += _picture_items(task, text, found, bad)
        seen.setdefault(stem, text.name)
    lonely = [picture for picture in shown if picture.stem.lower() not in seen]
    bad += [BadRow(f"{task}/{p.name}", f"there are no questions in {p.stem}.txt") for p in lonely]
    return len(files) + len(lonely)


def _picture_items(
    task: str, text: Path, pictures: list[Path], bad: list[BadRow]
) -> list[EvalItem]:
    """Returns the questions about a picture; none if one of them cannot be asked."""
    name = f"{task}/{text.name}"
    if not pictures:
        bad.append(BadRow(name, f"there is no picture {text.stem}.jpg or .png"))
        return []
    try:
        content = read_text(text)
    except EvalDataError as error:
        bad.append(BadRow(name, str(error)))
        return []
    lines = [line for line in re.split("\r\n|\n|\r", content) if line.strip()]
    if len(lines) != _PER_PICTURE:
        bad.append(BadRow(name, f"has {len(lines)} questions; expected {_PER_PICTURE}"))
        return []
    items = []
    for number, line in enumerate(lines, 1):
        question, _, answer = line.rpartition("\t")
        if not question.strip() or answer.strip().lower() not in (YES, NO):
            problem = f"is {line!r:.60}; expected a question, a tab, and Yes or No"
            bad.append(BadRow(f"{name} line {number}", problem))
            return []
        items.append(
            EvalItem(
                key=f"{task}/{text.stem}#{number}",
                row=name,
                unit=f"{task}/{text.stem}",
                category=task,
                prompt=question.strip(),
                picture=pictures[0],
                max_new_tokens=YES_NO_TOKENS,
                answer=answer.strip().lower(),
            )
        )
    return items
