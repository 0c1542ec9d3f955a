"""The built-in calibration set: texts and pictures of many kinds, in English and Chinese.

`configs/calibration` holds it: a file of texts for each kind, photographs, and what is drawn. A
demo has a set of its own, since it knows nothing but the pictures that it was trained on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

from convert.calibrate.drawings.kinds import Drawing
from convert.calibrate.samples import (
    CalibrationError,
    CalibrationSample,
    conversation,
    read_samples,
)
from convert.checkpoint.config import CONFIGS
from convert.support.json_text import json_lines
from convert.support.regular_file import read_regular
from convert.support.strict_json import load_json, parse_json
from runtime.demo.questions import LANGUAGES
from runtime.demo.task import TASKS, Task
from runtime.inputs.prompt import PromptError

SETTINGS = CONFIGS / "calibration.json"
FOLDER = CONFIGS / "calibration"
TEXTS, PHOTOGRAPHS = FOLDER / "texts", FOLDER / "photographs"
DRAWINGS = FOLDER / "drawings.jsonl"


def default_samples(*, demo: str | None, pictures: bool) -> list[CalibrationSample]:
    """Returns the built-in samples.

    Texts and pictures of all kinds take turns, in an order that is always the same; so the first
    few, or every n-th, are a fair choice. Questions about one picture follow each other.

    Args:
        demo: the name of the demo checkpoint that the model is: then all samples are pictures of
            the kind that it was trained on, none of which it has seen. None: it is no demo.
        pictures: whether the model has a vision encoder; if not, only texts are returned.

    Raises:
        CalibrationError: a file of the set is missing or damaged.
    """
    settings = load_json(SETTINGS)
    if demo is not None:
        count = settings["demo_pictures"] if pictures else 0
        return list(_demo_samples(TASKS[demo], settings["seed"], count))
    units: list[list[CalibrationSample]] = []
    for path in sorted(TEXTS.glob("*.jsonl")):
        units += [[sample] for sample in read_samples(path, pictures=False, skip_bad=False)]
    if pictures:
        path = PHOTOGRAPHS / "photographs.jsonl"
        samples = read_samples(path, pictures=True, skip_bad=False)
        units += [list(of) for _, of in itertools.groupby(samples, lambda s: s.picture_digest)]
        units += [_drawing_samples(*each) for each in read_drawings(DRAWINGS)]
    order = np.random.default_rng(settings["seed"]).permutation(len(units))
    return [sample for i in order for sample in units[i]]


def read_drawings(path: Path) -> list[tuple[str, Drawing]]:
    """Reads the drawings and the questions about them, each with its place for messages.

    Raises:
        CalibrationError: the file cannot be read, or a line, given by its number, is no drawing.
    """
    try:
        content = read_regular(path)
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read: {error.strerror or error}") from error
    found = []
    for number, line in json_lines(content):
        where = f"{path}, line {number}"
        try:
            found.append((where, msgspec.convert(parse_json(line), Drawing)))
        except ValueError as error:  # msgspec's errors are such, too
            raise CalibrationError(f"{where}: {error}") from error
    return found


def _drawing_samples(where: str, drawing: Drawing) -> list[CalibrationSample]:
    key = f"drawn {msgspec.json.encode(drawing.picture).decode()} {drawing.seed}"
    try:
        return [
            CalibrationSample(conversation(asked.question), asked.answer, where, drawing.draw, key)
            for asked in drawing.asked
        ]
    except PromptError as error:
        raise CalibrationError(f"{where}: {error}") from error


def _demo_samples(task: Task, seed: int, pictures: int) -> Iterator[CalibrationSample]:
    for i in range(pictures):
        subject = task.subject(np.random.default_rng([seed, i]), False)
        picture, words = partial(_draw, task, seed, i), np.random.default_rng([seed, i, 1])
        key, where = f"drawn {seed} {i}", f"built-in picture {i + 1}"
        for language in LANGUAGES:
            example = subject.ask(language, words)
            yield CalibrationSample(example.messages, example.answer, where, picture, key)


def _draw(task: Task, seed: int, i: int) -> Image.Image:
    return task.subject(np.random.default_rng([seed, i]), False).picture
