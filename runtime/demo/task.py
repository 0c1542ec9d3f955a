"""The two demos: what their pictures show, what is asked, and what training tells apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convert.checkpoint.config import CONFIGS
from runtime.demo.digits import (
    DIGIT_COLOURS,
    DIGITS,
    DigitItem,
    DigitScene,
    draw_digits,
    random_detail,
    random_digit,
    random_question,
)
from runtime.demo.questions import Example, random_example
from runtime.demo.scenes import (
    COLOURS,
    PLACES,
    SHAPES,
    SIZES,
    WORDS,
    Drawing,
    Generator,
    Scene,
    ShapeItem,
    draw,
    random_scene,
)

IGNORED_TARGET = -100
_SINGLE = 0.15  # share of training pictures with one item: their questions are learnt first
_WHOLE = 0.6  # share of training pictures that are as those to answer about
_FEWER = 0.5  # share of these that get fewer slices
_OVERVIEW = 0.6  # share of these that get none
_SLICES = 9  # of such a picture
_PARTS = (1, 2, 4, 6)  # slices of the others; their area is smaller in the same ratio
_READABLE = 2  # slices from which on a digit can be told

Box = tuple[float, float, float, float]  # left, top, right, bottom, in shares of the picture


class Subject(Protocol):
    """A picture, and what is known of it."""

    @property
    def picture(self) -> Image.Image:
        """The picture."""

    @property
    def max_slices(self) -> int | None:
        """How many slices it is to be cut into at most; None: as many as the model cuts."""

    def ask(self, language: str, rng: Generator) -> Example:
        """Asks about it."""

    def labels(self, box: Box, rows: int, columns: int, *, slices: int) -> Tensor:
        """Tells what stands at each cell of an image of the picture: (C, rows * columns) int64.

        Args:
            box: what the image shows.
            rows: of cells.
            columns: of cells.
            slices: of the picture, if the image is one of them; 0: it shows the picture whole.
        """


@dataclass(frozen=True)
class Task:
    """A demo checkpoint's subject."""

    name: str  # of its folder in configs
    wordings: dict[str, Any]  # every text that it reads or says
    common_characters: bool  # whether its tokenizer has Chinese characters that it never needs
    classes: tuple[int, ...]  # of each thing that a label tells; 0 is the background
    steps: int  # of training, of the committed checkpoint
    batch: int  # pictures in a step
    conversations: int  # about each
    learning_rate: float  # the most, after the warm-up
    subject: Callable[[Generator, bool], Subject]  # draws one; true: to learn from
    sample: Callable[[], Image.Image]  # draws the picture to try first
    # Draws one that the vision encoder learns from before any question is asked: one image, full of
    # what slices show here and there, with the area of a square of a given side. None: it needs no
    # such start.
    detail: Callable[[Generator, int], Subject] | None = None
    detail_steps: int = 0
    detail_batch: int = 0

    @property
    def folder(self) -> Path:
        """Where its checkpoint is."""
        return CONFIGS / self.name


@dataclass(frozen=True)
class _Shapes:
    scene: Scene
    drawing: Drawing
    max_slices: None = None

    @property
    def picture(self) -> Image.Image:
        return self.drawing.picture

    def ask(self, language: str, rng: Generator) -> Example:
        return random_example(self.scene, language, rng)

    def labels(self, box: Box, rows: int, columns: int, *, slices: int) -> Tensor:
        table = torch.tensor([[0, 0, 0, 0], *map(_shape_classes, self.scene.items)])
        cells = self.drawing.labels.resize((columns, rows), Image.Resampling.NEAREST)
        index = torch.from_numpy(np.asarray(cells, dtype=np.int64).reshape(-1))
        return table[index].T.contiguous()


@dataclass(frozen=True)
class _Digits:
    scene: DigitScene
    picture: Image.Image
    max_slices: int | None = None
    readable: bool = False  # whether digits can be told without slices

    def ask(self, language: str, rng: Generator) -> Example:
        return random_question(self.scene, language, rng)

    def labels(self, box: Box, rows: int, columns: int, *, slices: int) -> Tensor:
        """See `Subject`; a digit stands at the cell that has its middle."""
        left, top, right, bottom = box
        readable = self.readable or slices >= _READABLE
        labels = torch.zeros(2, rows, columns, dtype=torch.int64)
        for item in self.scene.items:
            x = (item.x / self.scene.width - left) / (right - left)
            y = (item.y / self.scene.height - top) / (bottom - top)
            if 0 <= x < 1 and 0 <= y < 1:
                labels[:, int(y * rows), int(x * columns)] = _digit_classes(item, readable)
        return labels.flatten(1)


def _shape_classes(item: ShapeItem) -> list[int]:
    shape, colour, size = (
        names.index(name) + 1
        for names, name in ((SHAPES, item.shape), (COLOURS, item.colour), (SIZES, item.size))
    )
    return [shape, colour, size, item.place + 1]


def _digit_classes(item: DigitItem, readable: bool) -> Tensor:
    digit = item.digit + 1 if readable else IGNORED_TARGET
    return torch.tensor([digit, DIGIT_COLOURS.index(item.colour) + 1])


def _shapes(rng: Generator, training: bool) -> _Shapes:
    scene = random_scene(rng, _SINGLE) if training else random_scene(rng)
    return _Shapes(scene, draw(scene, rng))


def _digits(rng: Generator, training: bool) -> _Digits:
    """Draws a picture; among those to learn from are parts of pictures, and some with fewer slices.

    What a question asks for is found sooner among fewer images, and they cost less time. And a user
    may ask for fewer slices than a picture needs.
    """
    if not training or rng.random() < _WHOLE:
        scene, most = random_digit(rng), None
        if training and rng.random() < _FEWER:
            most = 1 if rng.random() < _OVERVIEW else int(rng.integers(2, _SLICES))
        return _Digits(scene, draw_digits(scene, rng), most)
    most = int(rng.choice(_PARTS))
    scene = random_digit(rng, most / _SLICES)
    return _Digits(scene, draw_digits(scene, rng), most, readable=most == 1)


def _detail(rng: Generator, side: int) -> _Digits:
    scene = random_detail(rng)
    picture = draw_digits(scene, rng)
    scale = side / math.sqrt(picture.width * picture.height)
    size = int(picture.width * scale), int(picture.height * scale)
    return _Digits(scene, picture.resize(size, Image.Resampling.BICUBIC), 1, readable=True)


def _star() -> Image.Image:
    scene = Scene((ShapeItem("star", "red", "big", place=4),), 320, 240)
    return draw(scene, np.random.default_rng(1)).picture


def _seven() -> Image.Image:
    scene = DigitScene((DigitItem(7, "red", 430, 170),), 640, 480, 554)
    return draw_digits(scene, np.random.default_rng(1))


TASKS = {
    task.name: task
    for task in (
        Task(
            name="demo",
            wordings=WORDS,
            common_characters=True,
            classes=(len(SHAPES) + 1, len(COLOURS) + 1, len(SIZES) + 1, PLACES + 1),
            steps=5610,
            batch=12,
            conversations=8,
            learning_rate=8e-4,
            subject=_shapes,
            sample=_star,
        ),
        Task(
            name="demo-2.0",
            wordings={
                "meanings": DIGITS["meanings"],
                "colours": {name: WORDS["colours"][name] for name in DIGIT_COLOURS},
                "digits": list(DIGITS["strokes"]),
            },
            common_characters=False,
            classes=(11, len(DIGIT_COLOURS) + 1),
            steps=1000,
            batch=8,
            conversations=4,
            learning_rate=1.5e-3,
            subject=_digits,
            sample=_seven,
            detail=_detail,
            detail_steps=1674,
            detail_batch=12,
        ),
    )
}
