"""Pictures of a few coloured shapes, drawn from a seed."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from convert.checkpoint.config import CONFIGS

Generator = np.random.Generator
Point = tuple[float, float]

WORDS: dict[str, Any] = json.loads((CONFIGS / "wordings.json").read_text("utf-8"))
SHAPES, COLOURS, SIZES = (tuple(WORDS[k]) for k in ("shapes", "colours", "sizes"))
PLACES = len(WORDS["places"])  # cells of a 3 x 3 grid, row by row
MAX_ITEMS = len(WORDS["numbers"]["en"]) - 1

_GRID = math.isqrt(PLACES)
_RADII = {"big": (0.38, 0.47), "small": (0.21, 0.27)}  # of a cell's shorter side
_OVERSAMPLING = 2  # edges are smoothed by drawing larger


@dataclass(frozen=True)
class ShapeItem:
    """One shape of a picture."""

    shape: str
    colour: str
    size: str
    place: int  # cell of the grid


@dataclass(frozen=True)
class Scene:
    """What a picture shows; items stand in reading order, at most one in a cell."""

    items: tuple[ShapeItem, ...]
    width: int  # pixels
    height: int


@dataclass(frozen=True)
class Drawing:
    """A picture and where its items are."""

    picture: Image.Image
    labels: Image.Image  # mode L: 0 background, k + 1 the k-th item


def random_scene(rng: Generator, single: float = 0.4) -> Scene:
    """Draws a scene's content.

    Args:
        rng: where it comes from.
        single: share of pictures with one item; the others have up to `MAX_ITEMS`.
    """
    count = 1 if rng.random() < single else int(rng.integers(2, MAX_ITEMS + 1))
    places = sorted(rng.choice(PLACES, size=count, replace=False).tolist())
    items = tuple(
        ShapeItem(
            shape=str(rng.choice(SHAPES)),
            colour=str(rng.choice(COLOURS)),
            size=str(rng.choice(SIZES)),
            place=place,
        )
        for place in places
    )
    longer = int(rng.integers(120, 301))
    shorter = int(longer * rng.uniform(0.6, 1.0))
    width, height = (longer, shorter) if rng.random() < 0.5 else (shorter, longer)
    return Scene(items, width, height)


def draw(scene: Scene, rng: Generator) -> Drawing:
    """Draws a scene on a random background, with jitter in place, size, angle and colour."""
    size = scene.width * _OVERSAMPLING, scene.height * _OVERSAMPLING
    picture = background(size, rng)
    labels = Image.new("L", size)
    brush, marker = ImageDraw.Draw(picture), ImageDraw.Draw(labels)
    cell_width, cell_height = size[0] / _GRID, size[1] / _GRID
    for k, item in enumerate(scene.items):
        radius = rng.uniform(*_RADII[item.size]) * min(cell_width, cell_height)
        row, column = divmod(item.place, _GRID)
        x = _inside((column + 0.5) * cell_width, cell_width, radius, rng)
        y = _inside((row + 0.5) * cell_height, cell_height, radius, rng)
        outline = _outline(item.shape, (x, y), radius, rng)
        brush.polygon(outline, fill=shade(item.colour, rng))
        marker.polygon(outline, fill=k + 1)
    return Drawing(picture.resize((scene.width, scene.height), Image.Resampling.BOX), labels)


def _inside(middle: float, length: float, radius: float, rng: Generator) -> float:
    """Moves an item from the middle of its cell, not over the cell's border."""
    return middle + rng.uniform(-1, 1) * max(0.0, 0.45 * length - radius)


def _outline(shape: str, centre: Point, radius: float, rng: Generator) -> list[Point]:
    if shape == "circle":
        return _spokes(centre, [radius] * 40, 0.0)
    if shape == "square":
        return _spokes(centre, [radius] * 4, math.pi / 4 + rng.uniform(-0.15, 0.15))
    if shape == "triangle":
        return _spokes(centre, [radius * 1.1] * 3, -math.pi / 2 + rng.uniform(-0.25, 0.25))
    if shape == "star":
        return _spokes(
            centre, [radius * 1.1, radius * 0.45] * 5, -math.pi / 2 + rng.uniform(-0.3, 0.3)
        )
    assert shape == "cross", shape
    arm = 0.32
    corners = [(arm, 1), (arm, arm), (1, arm)]
    points = [_turn(x, y, k * math.pi / 2) for k in range(4) for x, y in corners]
    angle = rng.uniform(-0.2, 0.2)
    turned = [_turn(x, y, angle) for x, y in points]
    return [(centre[0] + x * radius, centre[1] + y * radius) for x, y in turned]


def _spokes(centre: Point, radii: list[float], start: float) -> list[Point]:
    step = 2 * math.pi / len(radii)
    return [
        (centre[0] + r * math.cos(start + k * step), centre[1] + r * math.sin(start + k * step))
        for k, r in enumerate(radii)
    ]


def _turn(x: float, y: float, angle: float) -> Point:
    # Clockwise from the upper right, so that the cross's corners follow each other.
    cos, sin = math.cos(-angle), math.sin(-angle)
    return x * cos - y * sin, x * sin + y * cos


def shade(colour: str, rng: Generator) -> tuple[int, int, int]:
    """Returns a colour of that name, each time another."""
    rgb = np.array(WORDS["colours"][colour]["rgb"]) + rng.integers(-14, 15, 3)
    r, g, b = np.clip(rgb, 0, 255).tolist()
    return r, g, b


def background(size: tuple[int, int], rng: Generator) -> Image.Image:
    """Plain, a gradient, stripes or noise; always light, so that every colour stands out."""
    width, height = size
    kind = rng.choice(["plain", "gradient", "stripes", "noise"])
    first, second = rng.integers(188, 256, 3), rng.integers(188, 256, 3)
    if kind == "plain":
        return Image.new("RGB", size, tuple(first.tolist()))
    if kind == "noise":
        coarse = rng.integers(-16, 17, (12, 12, 3)) + first
        small = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8))
        return small.resize(size, Image.Resampling.BICUBIC)
    across = rng.random() < 0.5
    ramp = np.linspace(0, 1, width if across else height)
    if kind == "stripes":
        ramp = np.floor(ramp * rng.integers(4, 12)) % 2
    line = (first + (second - first) * ramp[:, None]).astype(np.uint8)
    row = Image.fromarray(line[None] if across else line[:, None])
    return row.resize(size, Image.Resampling.NEAREST)
