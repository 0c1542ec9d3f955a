"""Charts and diagrams: bars, lines, a pie, boxes with arrows, a street map."""

from __future__ import annotations

import math
from typing import Literal

from msgspec import Struct
from PIL import Image

from convert.calibrate.drawings.canvas import ACCENTS, SERIES, Canvas, Generator, Point, pick
from convert.calibrate.drawings.picture import Picture

_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 430, 50, 250  # of the axes


class Bars(Picture, frozen=True, tag="bars"):
    """A bar chart, with the values above the bars."""

    title: str
    values: list[tuple[str, float]]

    def draw(self, rng: Generator) -> Image.Image:
        """Draws it from zero."""
        canvas, colour = Canvas(450, 290), pick(rng, SERIES)
        top = _axes(canvas, self.title, max(value for _, value in self.values))
        step = (_RIGHT - _LEFT) / len(self.values)
        for i, (name, value) in enumerate(self.values):
            x, y = _LEFT + (i + 0.5) * step, _BOTTOM - value / top * (_BOTTOM - _TOP)
            canvas.box((x - 0.32 * step, y, x + 0.32 * step, _BOTTOM), colour)
            canvas.text((x, y - 9), f"{value:g}", 12, "#222222", "mm")
            canvas.text((x, _BOTTOM + 14), name, 12, "#222222", "mm")
        return canvas.finish()


class Lines(Picture, frozen=True, tag="lines"):
    """A line chart with a legend."""

    title: str
    along: list[str]
    series: dict[str, list[float]]

    def draw(self, rng: Generator) -> Image.Image:
        """Draws it from zero."""
        canvas = Canvas(450, 300)
        top = _axes(canvas, self.title, max(map(max, self.series.values())))
        step, x = (_RIGHT - _LEFT) / (len(self.along) - 1), float(_LEFT)
        for i, name in enumerate(self.along):
            canvas.text((_LEFT + i * step, _BOTTOM + 14), name, 11, "#222222", "mm")
        first = int(rng.integers(len(SERIES)))
        for k, (name, values) in enumerate(self.series.items()):
            colour = SERIES[(first + k) % len(SERIES)]
            points = [
                (_LEFT + i * step, _BOTTOM - value / top * (_BOTTOM - _TOP))
                for i, value in enumerate(values)
            ]
            canvas.line(points, colour, 2.5)
            for point in points:
                canvas.circle(point, 3.5, colour)
            canvas.line([(x, 284), (x + 18, 284)], colour, 3)
            canvas.text((x + 24, 284), name, 12, "#222222", "lm")
            x += 44 + canvas.text_width(name, 12)
        return canvas.finish()


class Pie(Picture, frozen=True, tag="pie"):
    """A pie chart with a legend; clockwise from the top."""

    title: str
    parts: list[tuple[str, float]]

    def draw(self, rng: Generator) -> Image.Image:
        """Draws it."""
        canvas, start = Canvas(430, 280), -90.0
        canvas.text((20, 14), self.title, 17, "#222222")
        total, first = sum(value for _, value in self.parts), int(rng.integers(len(SERIES)))
        for i, (name, value) in enumerate(self.parts):
            colour, y = SERIES[(first + i) % len(SERIES)], 80 + 30 * i
            end = start + 360 * value / total
            canvas.sector((135, 160), 100, start, end, colour)
            canvas.box((265, y, 281, y + 16), colour)
            canvas.text((290, y + 8), f"{name}  {value:g}%", 14, "#222222", "lm")
            start = end
        return canvas.finish()


class FlowBox(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A box of a flow chart."""

    text: str
    at: tuple[int, int]  # column and row
    shape: Literal["step", "choice", "end"] = "step"


class Flow(Picture, frozen=True, tag="flow"):
    """A flow chart: boxes on a grid, and arrows between neighbours."""

    boxes: list[FlowBox]
    arrows: list[tuple[int, int, str]]  # from which box to which, and what is written beside

    def draw(self, rng: Generator) -> Image.Image:
        """Draws it."""
        columns, rows = (max(box.at[k] for box in self.boxes) + 1 for k in (0, 1))
        canvas, accent = Canvas(40 + 150 * columns, 20 + 84 * rows), pick(rng, ACCENTS)
        centres = [(95.0 + 150 * box.at[0], 52.0 + 84 * box.at[1]) for box in self.boxes]
        for box, (x, y) in zip(self.boxes, centres, strict=True):
            if box.shape == "choice":
                corners = [(x, y - 27), (x + 62, y), (x, y + 27), (x - 62, y)]
                canvas.polygon(corners, "#fef3c7", accent)
            else:
                radius = 19 if box.shape == "end" else 3
                canvas.box((x - 57, y - 19, x + 57, y + 19), "#eef2ff", accent, radius=radius)
            canvas.text((x, y), box.text, 12, "#111827", "mm")
        for begin, end, text in self.arrows:
            (x0, y0), (x1, y1) = centres[begin], centres[end]
            start = self._edge(begin, centres[begin], (x1, y1))
            stop = self._edge(end, centres[end], (x0, y0))
            canvas.arrow([start, stop], "#374151")
            middle = ((start[0] + stop[0]) / 2, (start[1] + stop[1]) / 2)
            aside = (8, 0) if x0 == x1 else (-7, -9)
            canvas.text((middle[0] + aside[0], middle[1] + aside[1]), text, 11, "#b91c1c", "lm")
        return canvas.finish()

    def _edge(self, index: int, centre: Point, towards: Point) -> Point:
        """Returns where an arrow meets a box."""
        choice = self.boxes[index].shape == "choice"
        half = (62, 27) if choice else (57, 19)
        dx, dy = towards[0] - centre[0], towards[1] - centre[1]
        if choice:
            scale = 1 / (abs(dx) / half[0] + abs(dy) / half[1])
        else:
            scale = min(
                half[0] / abs(dx) if dx else math.inf, half[1] / abs(dy) if dy else math.inf
            )
        return centre[0] + dx * scale, centre[1] + dy * scale


class StreetMap(Picture, frozen=True, tag="map"):
    """A town's map: streets of a grid, a river, places at crossings, and a route."""

    across: list[str]  # streets from west to east, the northernmost first
    down: list[str]  # streets from north to south, the westernmost first
    places: list[tuple[str, int, int]]  # name; which street down and across it stands at
    route: list[tuple[int, int]]  # crossings
    river: bool  # along the southern edge

    def draw(self, rng: Generator) -> Image.Image:
        """Draws it with north at the top."""
        step = 104
        width, height = 60 + step * len(self.down), 60 + step * len(self.across)
        canvas = Canvas(width, height, "#e8efe4")
        for _ in range(6):
            x, y = float(rng.uniform(0, width - 60)), float(rng.uniform(0, height - 60))
            canvas.box((x, y, x + 58, y + 40), pick(rng, ("#d6e4c8", "#dcdcd2", "#cfe0bd")))
        if self.river:
            wave = [(x, height - 16 + 6 * math.sin(x / 40)) for x in range(0, width + 1, 8)]
            canvas.line(wave, "#8ec5e8", 26)
        crossing = [[(70.0 + step * c, 66.0 + step * r) for c in range(len(self.down))]
                    for r in range(len(self.across))]  # fmt: skip
        for r, name in enumerate(self.across):
            y = crossing[r][0][1]
            canvas.line([(0, y), (width, y)], "white", 15)
            canvas.text((8, y), name, 11, "#444444", "lm")
        for c, name in enumerate(self.down):
            x = crossing[0][c][0]
            canvas.line([(x, 0), (x, height - 32 if self.river else height)], "white", 15)
            canvas.text((x + 9, 14), name, 11, "#444444", "lm")
        if self.route:
            canvas.arrow([crossing[r][c] for c, r in self.route], "#dc2626", 4)
        for name, c, r in self.places:
            x, y = crossing[r][c]
            canvas.circle((x + 20, y + 22), 7, pick(rng, ACCENTS), "white", 2)
            canvas.text((x + 31, y + 22), name, 12, "#111827", "lm")
        canvas.arrow([(width - 20, 44), (width - 20, 14)], "#111827", 2)
        canvas.text((width - 20, 54), "N", 13, "#111827", "mm")
        return canvas.finish()


def _axes(canvas: Canvas, title: str, largest: float) -> float:
    """Draws axes and title; returns the value at the top."""
    step = 10.0 ** math.floor(math.log10(largest))
    step = next(step * k for k in (0.2, 0.25, 0.5, 1, 2) if largest / (step * k) <= 6)
    top = step * math.ceil(largest / step)
    canvas.text((_LEFT, 12), title, 16, "#222222")
    for i in range(round(top / step) + 1):
        y = _BOTTOM - i * step / top * (_BOTTOM - _TOP)
        canvas.line([(_LEFT, y), (_RIGHT, y)], "#e5e7eb" if i else "#6b7280")
        canvas.text((_LEFT - 6, y), f"{i * step:g}", 11, "#555555", "rm")
    return top
