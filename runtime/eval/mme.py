"""MME: a folder for each task, two yes/no questions for each picture, accuracy and accuracy+.

The files are those of MME's release, the rules those of its `eval_tool/calculation.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from runtime.eval.items import (
    YES_NO_TOKENS,
    BadRow,
    EvalDataError,
    Item,
    Questions,
    Score,
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
    """Reads MME's folder, or as many tasks as there are.

    Raises:
        EvalDataError: no task is there.
    """
    tasks = [path / name for name in (*PERCEPTION, *COGNITION) if (path / name).is_dir()]
    if not tasks:
        raise EvalDataError(
            f"{path}: no folder of a task of MME; expected {', '.join(PERCEPTION[:3])}, …"
        )
    items: list[Item] = []
    bad: list[BadRow] = []
    for task in tasks:
        folder = task / _TEXTS if (task / _TEXTS).is_dir() else task
        texts = sorted(folder.glob("*.txt"))
        if not texts:
            bad.append(BadRow(task.name, "there are no questions"))
        for text in texts:
            items += _picture_items(task, text, bad)
    return Questions(items, bad, "mme")


def score(items: Sequence[Item], answers: Mapping[str, str]) -> Score:
    """Scores answers by key; the figure is the sum over the tasks of perception."""
    units: dict[str, list[tuple[Item, bool]]] = {}
    unread = 0
    for item in items:
        said = match(answers[item.key])
        unread += said is None
        units.setdefault(item.unit, []).append((item, said == item.answer))
    points = {}
    for task in (*PERCEPTION, *COGNITION):
        pairs = [[right for _, right in u] for u in units.values() if u[0][0].category == task]
        if pairs:
            each = percent([right for pair in pairs for right in pair])
            points[task] = each + percent([all(pair) for pair in pairs])
    perception = sum(points.get(task, 0.0) for task in PERCEPTION)
    cognition = sum(points.get(task, 0.0) for task in COGNITION)
    return Score(
        figure=perception,
        parts={"perception": perception, "cognition": cognition, **points},
        scored=len(units),
        unread=unread,
    )


def match(answer: str) -> str | None:
    """Returns `yes`, `no`, or None: what the beginning of an answer says."""
    start = answer.lower()[:_PREFIX]
    return YES if YES in start else NO if NO in start else None


def _picture_items(task: Path, text: Path, bad: list[BadRow]) -> list[Item]:
    name = f"{task.name}/{text.name}"
    folder = task / _PICTURES if text.parent.name == _TEXTS else text.parent
    found = [folder / (text.stem + s) for s in _SUFFIXES if (folder / (text.stem + s)).is_file()]
    if not found:
        bad.append(BadRow(name, f"there is no picture {text.stem}.jpg or .png"))
        return []
    try:
        lines = [line for line in text.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        bad.append(BadRow(name, f"cannot be read: {error}"))
        return []
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
            Item(
                key=f"{task.name}/{text.stem}#{number}",
                row=f"{name} line {number}",
                unit=f"{task.name}/{text.stem}",
                category=task.name,
                prompt=question.strip(),
                picture=found[0],
                max_new_tokens=YES_NO_TOKENS,
                answer=answer.strip().lower(),
            )
        )
    return items
