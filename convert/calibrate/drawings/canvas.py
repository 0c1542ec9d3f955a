"""A canvas with smooth edges, and what drawings have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Generator = np.random.Generator
Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom
Colour = str | tuple[int, int, int]
Anchor = Literal["la", "ma", "ra", "lm", "mm", "rm"]  # left, middle, right; ascender, middle

INKS = ("#1f2933", "#102a43", "#2d2a32", "#22333b")
ACCENTS = ("#2563eb", "#b45309", "#047857", "#9d174d", "#6d28d9", "#0e7490")
SERIES = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#64748b")

PITCH = 0.64  # the width of a typed character, as a share of its size
_FINE = 2  # drawn this many times as large, then reduced, which smooths the edges


class Canvas:
    """Draws in pixels of the finished picture, which need not be whole numbers."""

    def __init__(self, width: int, height: int, colour: Colour = "white") -> None:
        self.width, self.height = width, height
        self._picture = Image.new("RGB", (width * _FINE, height * _FINE), colour)
        self._draw = ImageDraw.Draw(self._picture)

    def finish(self) -> Image.Image:
        """Returns the picture."""
        return self._picture.resize((self.width, self.height), Image.Resampling.BOX)

    def box(
        self,
        box: Box,
        fill: Colour | None = None,
        outline: Colour | None = None,
        *,
        width: float = 1,
        radius: float = 0,
    ) -> None:
        """Draws a rectangle, with round corners if there is a radius."""
        scaled = tuple(round(v * _FINE) for v in box)
        self._draw.rounded_rectangle(
            scaled, radius * _FINE, fill, outline, round(width * _FINE) if outline else 0
        )

    def circle(
        self,
        centre: Point,
        radius: float,
        fill: Colour | None = None,
        outline: Colour | None = None,
        width: float = 1,
    ) -> None:
        """Draws a disc or a ring."""
        x, y = centre
        box = tuple(v * _FINE for v in (x - radius, y - radius, x + radius, y + radius))
        self._draw.ellipse(box, fill, outline, round(width * _FINE) if outline else 0)

    def sector(self, centre: Point, radius: float, start: float, end: float, fill: Colour) -> None:
        """Draws a slice of a disc between two angles in degrees, clockwise from the right."""
        x, y = centre
        box = tuple(v * _FINE for v in (x - radius, y - radius, x + radius, y + radius))
        self._draw.pieslice(box, start, end, fill, "white", 2)

    def polygon(self, points: Sequence[Point], fill: Colour, outline: Colour | None = None) -> None:
        """Draws a filled polygon."""
        self._draw.polygon([(x * _FINE, y * _FINE) for x, y in points], fill, outline, 2 * _FINE)

    def line(self, points: Sequence[Point], colour: Colour, width: float = 1) -> None:
        """Draws a line through points."""
        scaled = [(x * _FINE, y * _FINE) for x, y in points]
        self._draw.line(scaled, colour, max(1, round(width * _FINE)), joint="curve")

    def arrow(self, points: Sequence[Point], colour: Colour, width: float = 1.5) -> None:
        """Draws a line with a head at its last point."""
        (x0, y0), (x1, y1) = points[-2:]
        angle, length = math.atan2(y1 - y0, x1 - x0), 5 + 2 * width
        back = [
            (x1 - length * math.cos(angle + turn), y1 - length * math.sin(angle + turn))
            for turn in (-0.45, 0.45)
        ]
        end = (x1 - 0.8 * length * math.cos(angle), y1 - 0.8 * length * math.sin(angle))
        self.line([*points[:-1], end], colour, width)
        self.polygon([(x1, y1), *back], colour)

    def text(
        self, at: Point, text: str, size: float, colour: Colour = "black", anchor: Anchor = "la"
    ) -> None:
        """Writes one line of text."""
        x, y = at
        self._draw.text((x * _FINE, y * _FINE), text, colour, _font(size), anchor)

    def text_width(self, text: str, size: float) -> float:
        """Returns the width of a line of text in pixels."""
        return float(_font(size).getlength(text)) / _FINE

    def typed(self, at: Point, text: str, size: float, colour: Colour = "black") -> None:
        """Writes one line with characters of one width, `PITCH` times the size."""
        step = PITCH * size
        for i, char in enumerate(text):
            self.text((at[0] + (i + 0.5) * step, at[1]), char, size, colour, "ma")


def pick(rng: Generator, colours: Sequence[str]) -> str:
    """Returns one of some colours."""
    return colours[int(rng.integers(len(colours)))]


def photographed(picture: Image.Image, rng: Generator, desk: Colour = "#6b5744") -> Image.Image:
    """Returns a sheet as if photographed on a desk: askew, unevenly lit, with noise."""
    angle = float(rng.uniform(-5, 5))
    margin = 14
    size = (picture.width + 2 * margin, picture.height + 2 * margin)
    photo = Image.new("RGB", size, desk)
    sheet = picture.convert("RGBA").rotate(angle, Image.Resampling.BICUBIC, expand=True)
    sheet.thumbnail(size)
    photo.paste(sheet, ((size[0] - sheet.width) // 2, (size[1] - sheet.height) // 2), sheet)
    return noisy(photo, rng, light=float(rng.uniform(0.2, 0.4)))


def noisy(
    picture: Image.Image, rng: Generator, *, light: float = 0.0, grain: float = 4.0
) -> Image.Image:
    """Adds grain; `light` is the share of brightness that is lost towards one corner."""
    pixels = np.asarray(picture, dtype=np.float32)
    height, width = pixels.shape[:2]
    down, right = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)[None, :]
    shade = 1 - light * (down + right) / 2
    noise = rng.normal(0, grain, (height, width, 1))
    mixed = pixels * shade[..., None] + noise
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def _font(size: float) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size * _FINE)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow's wheels have FreeType"
    return font
