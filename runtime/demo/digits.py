"""Pictures of a small coloured digit, drawn from a seed, and questions about it.

A digit is about a thirtieth of a picture high: the slices of a picture show it, the overview has
four pixels of it, too few to read it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw

from convert.checkpoint.config import CONFIGS
from runtime.demo.questions import Example, Turn, conversation, fill
from runtime.demo.scenes import WORDS, Generator, Point, background, shade

DIGITS: dict[str, Any] = json.loads((CONFIGS / "digits.json").read_text("utf-8"))
DIGIT_COLOURS = tuple(DIGITS["colours"])

_DETAIL_DIGITS = 8
DIGIT_HEIGHTS = (0.030, 0.036)  # of a digit, times the root of the picture's area
_MARGIN, _DISTANCE = 0.05, 0.16  # from the border and between digits, times the same
_OVERSAMPLING = 4  # edges are smoothed by drawing larger


@dataclass(frozen=True)
class DigitItem:
    """One digit of a picture."""

    digit: int
    colour: str
    x: float  # of its middle, pixels
    y: float


@dataclass(frozen=True)
class DigitScene:
    """What a picture shows."""

    items: tuple[DigitItem, ...]
    width: int  # pixels
    height: int
    whole: float  # the root of the area of the picture that this is, or is a part of


def random_digit(rng: Generator, share: float = 1) -> DigitScene:
    """Draws the content of a picture with one digit, or of a part that has `share` of its area."""
    side = rng.uniform(300, 640)
    return _place([str(rng.choice(DIGIT_COLOURS))], side * math.sqrt(share), side, rng)


def random_detail(rng: Generator) -> DigitScene:
    """Draws what a part of a picture may show, of the size of a slice, but full of digits."""
    side = rng.uniform(100, 213)
    return _place(rng.choice(DIGIT_COLOURS, size=_DETAIL_DIGITS).tolist(), side, 3 * side, rng)


def _place(colours: list[str], side: float, whole: float, rng: Generator) -> DigitScene:
    """Puts a digit of each colour somewhere.

    Args:
        colours: of the digits.
        side: the root of the area, pixels.
        whole: that of the picture that this is, or is a part of.
        rng: where it comes from.
    """
    shape = math.exp(rng.uniform(-0.7, 0.7))
    width, height = round(side * math.sqrt(shape)), round(side / math.sqrt(shape))
    places: list[Point] = []
    margin = _MARGIN * whole
    distance = min(_DISTANCE * whole, 0.6 * side / math.sqrt(len(colours)))
    while len(places) < len(colours):
        place = rng.uniform(margin, width - margin), rng.uniform(margin, height - margin)
        if all(math.dist(place, other) > distance for other in places):
            places.append(place)
        else:
            distance *= 0.99  # there may be no room for all
    items = [DigitItem(int(rng.integers(10)), c, *p) for c, p in zip(colours, places, strict=True)]
    return DigitScene(tuple(items), width, height, whole)


def draw_digits(scene: DigitScene, rng: Generator) -> Image.Image:
    """Draws a scene on a random background, with jitter in size, angle, stroke and colour."""
    picture = background((scene.width, scene.height), rng)
    for item in scene.items:
        height = rng.uniform(*DIGIT_HEIGHTS) * scene.whole
        glyph = _glyph(item.digit, height, (item.x % 1, item.y % 1), rng)
        corner = int(item.x) - glyph.width // 2, int(item.y) - glyph.height // 2
        picture.paste(shade(item.colour, rng), corner, glyph)
    return picture


def random_question(scene: DigitScene, language: str, rng: Generator) -> Example:
    """Asks about a picture's only digit: one question, or both."""
    meanings = rng.permutation(list(DIGITS["meanings"])).tolist()
    turns = meanings[: 1 if rng.random() < 0.7 else 2]
    return conversation(language, [_turn(scene.items[0], turn, language, rng) for turn in turns])


def _glyph(digit: int, height: float, offset: Point, rng: Generator) -> Image.Image:
    """Draws one digit on a mask, `offset` pixels right of and below its middle."""
    half = math.ceil(height)
    side = 2 * half * _OVERSAMPLING
    mask = Image.new("L", (side, side))
    brush = ImageDraw.Draw(mask)
    scale = height * _OVERSAMPLING
    angle, thickness = rng.uniform(-0.12, 0.12), rng.uniform(0.14, 0.19) * scale
    cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
    x0, y0 = ((half + part) * _OVERSAMPLING for part in offset)
    line = [(x - 0.3, y - 0.5) for x, y in DIGITS["strokes"][str(digit)]]
    points = [(x0 + x * cos - y * sin, y0 + x * sin + y * cos) for x, y in line]
    brush.line(points, fill=255, width=round(thickness))
    for x, y in points:  # round ends and joints
        r = thickness / 2
        brush.ellipse((x - r, y - r, x + r, y + r), fill=255)
    return mask.resize((2 * half, 2 * half), Image.Resampling.BOX)


def _turn(item: DigitItem, meaning: str, language: str, rng: Generator) -> Turn:
    words = {"digit": str(item.digit), "colour": WORDS["colours"][item.colour][language]}
    form = DIGITS["meanings"][meaning][language]
    return Turn(meaning, fill(str(rng.choice(form["ask"])), words), fill(form["say"], words))
