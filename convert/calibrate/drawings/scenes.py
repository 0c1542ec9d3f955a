"""Scenes: a road, a landscape by day and night, a clock, objects in rows, patterns."""

from __future__ import annotations

import math
from typing import Literal

from PIL import Image

from convert.calibrate.drawings.canvas import Canvas, Generator, noisy, pick
from convert.calibrate.drawings.picture import Picture

Sign = Literal["stop", "limit", "curve", "no entry", "yield"]
Shape = Literal["circle", "square", "triangle", "star", "ring"]
COLOURS = {
    "red": "#dc2626",
    "blue": "#2563eb",
    "green": "#16a34a",
    "yellow": "#facc15",
    "orange": "#f97316",
    "purple": "#7e22ce",
    "black": "#111827",
    "white": "#f9fafb",
}


class Road(Picture, frozen=True, tag="road"):
    """A road towards the horizon with a car on it and signs on its right."""

    night: bool
    car: str  # its colour
    signs: list[Sign]  # the farthest first
    limit: int = 50  # on signs of limits

    def draw(self, rng: Generator) -> Image.Image:
        """Draws it; by night with lit headlamps and stars."""
        sky, ground, tar = (
            ("#0b1026", "#12201a", "#23272e") if self.night else ("#9fd3f5", "#7fae5a", "#6b7280")
        )
        canvas = Canvas(440, 300, sky)
        if self.night:
            for _ in range(60):
                point = float(rng.uniform(0, 440)), float(rng.uniform(0, 110))
                canvas.circle(point, float(rng.uniform(0.4, 1.3)), "white")
        else:
            canvas.circle((70, 50), 22, "#fde047")
        hills = [(x, 120 - 22 * math.sin(x / 90 + 1) ** 2) for x in range(0, 441, 10)]
        canvas.polygon([(0, 130), *hills, (440, 130)], "#0f1a24" if self.night else "#6d9a8a")
        canvas.box((0, 122, 440, 300), ground)
        canvas.polygon([(200, 122), (214, 122), (330, 300), (40, 300)], tar)
        for k in range(6):
            y = 128 + 30 * k * (0.6 + 0.08 * k)
            if y < 290:
                x, half = 207 - (y - 122) * 0.124, 0.6 + (y - 122) / 60
                long = 6 + (y - 122) / 9
                corners = [(x - half, y), (x + half, y), (x + 1.2 * half, y + long)]
                canvas.polygon([*corners, (x - 1.2 * half, y + long)], "#f3f4f6")
        self._draw_car(canvas)
        for i, sign in enumerate(self.signs):
            size = 17 + 11 * i
            _draw_sign(canvas, sign, 282 + 66 * i, 108 - 6 * i, size, self.limit)
        return noisy(canvas.finish(), rng, light=0.15, grain=5 if self.night else 3)

    def _draw_car(self, canvas: Canvas) -> None:
        x, y, paint = 132.0, 226.0, COLOURS[self.car]
        canvas.polygon([(x - 26, y), (x - 18, y - 22), (x + 18, y - 22), (x + 26, y)], paint)
        canvas.polygon(
            [(x - 20, y - 2), (x - 14, y - 18), (x + 14, y - 18), (x + 20, y - 2)], "#334155"
        )
        canvas.box((x - 34, y - 2, x + 34, y + 22), paint, "#111827", radius=5)
        for side in (-24, 24):
            canvas.box((x + side - 7, y + 18, x + side + 7, y + 30), "#111827", radius=2)
            lamp = "#fff7c2" if self.night else "#e5e7eb"
            canvas.circle((x + side, y + 9), 5, lamp)
            if self.night:
                canvas.circle((x + side, y + 9), 9, None, "#fde68a", 2)
        canvas.box((x - 12, y + 8, x + 12, y + 16), "#f9fafb")


def _draw_sign(canvas: Canvas, sign: Sign, x: float, y: float, size: float, limit: int) -> None:
    canvas.box((x - 2, y, x + 2, y + 2.6 * size + 40), "#9ca3af")
    if sign == "stop":
        turned = [math.pi / 8 + k * math.pi / 4 for k in range(8)]
        corners = [(x + size * math.cos(a), y + size * math.sin(a)) for a in turned]
        canvas.polygon(corners, "#b91c1c", "white")
        canvas.text((x, y), "STOP", size * 0.6, "white", "mm")
    elif sign == "limit":
        canvas.circle((x, y), size, "white", "#dc2626", size / 5)
        canvas.text((x, y), str(limit), size * 0.9, "black", "mm")
    elif sign == "no entry":
        canvas.circle((x, y), size, "#dc2626", "white", 1.5)
        canvas.box((x - 0.65 * size, y - 0.17 * size, x + 0.65 * size, y + 0.17 * size), "white")
    elif sign == "yield":
        outer = [(x - size, y - 0.8 * size), (x + size, y - 0.8 * size), (x, y + size)]
        inner = [(x + 0.55 * (px - x), y - 0.12 * size + 0.55 * (py - y)) for px, py in outer]
        canvas.polygon(outer, "#dc2626")
        canvas.polygon(inner, "white")
    else:
        corners = [(x, y - size), (x + size, y), (x, y + size), (x - size, y)]
        canvas.polygon(corners, "#facc15", "black")
        bend = [
            (x - 0.1 * size, y + 0.5 * size),
            (x - 0.1 * size, y),
            (x + 0.3 * size, y - 0.4 * size),
        ]
        canvas.arrow(bend, "black", size / 9)


class Landscape(Picture, frozen=True, tag="landscape"):
    """Hills with houses and trees, by day or by night."""

    night: bool
    houses: int
    trees: int
    lit: int = 0  # how many houses have a lit window
    snow: bool = False

    def draw(self, rng: Generator) -> Image.Image:
        """Draws it under a sun or a moon."""
        canvas = Canvas(448, 300, "#0a0f24" if self.night else "#bfe3ff")
        if self.night:
            for _ in range(90):
                point = float(rng.uniform(0, 448)), float(rng.uniform(0, 170))
                canvas.circle(point, float(rng.uniform(0.4, 1.4)), "#e5e7eb")
            canvas.circle((350, 58), 26, "#fef9c3")
            canvas.circle((361, 50), 24, "#0a0f24")
        else:
            canvas.circle((360, 60), 28, "#fcd34d")
            for x in (70, 190):
                for dx, radius in ((-22, 14), (0, 20), (24, 15)):
                    canvas.circle((x + dx, 60), radius, "white")
        far, near = ("#141b36", "#0d1a14") if self.night else ("#8fb0c9", "#6aa84f")
        if self.snow:
            near = "#3b4664" if self.night else "#f8fafc"
        phase = float(rng.uniform(0, 3))
        peaks = [(x, 150 - 70 * abs(math.sin(x / 80 + phase))) for x in range(0, 449, 8)]
        canvas.polygon([(0, 240), *peaks, (448, 240)], far)
        canvas.polygon([(0, 300), (0, 196), (150, 184), (300, 200), (448, 186), (448, 300)], near)
        spots = [24 + 400 * (i + 0.5) / (self.houses + self.trees)
                 for i in range(self.houses + self.trees)]  # fmt: skip
        order = rng.permutation(self.houses + self.trees)
        for house, i in enumerate(order):
            if house < self.houses:
                self._draw_house(canvas, spots[i], lit=house < self.lit, rng=rng)
            else:
                self._draw_tree(canvas, spots[i], float(rng.uniform(0.9, 1.2)))
        return noisy(canvas.finish(), rng, grain=3)

    def _draw_house(self, canvas: Canvas, x: float, *, lit: bool, rng: Generator) -> None:
        walls = ("#2b3245", "#32303f") if self.night else ("#f5e6cc", "#e7c8a0", "#dbe4ee")
        canvas.box((x - 19, 200, x + 19, 236), pick(rng, walls))
        roof = "#1c1f2e" if self.night else "#a94438"
        canvas.polygon([(x - 24, 201), (x, 178), (x + 24, 201)], roof)
        glass = "#fde047" if lit else "#11151f" if self.night else "#7aa5c4"
        canvas.box((x - 11, 209, x + 1, 221), glass)
        canvas.box((x + 6, 214, x + 15, 236), "#171a26" if self.night else "#7c4a2d")

    def _draw_tree(self, canvas: Canvas, x: float, size: float) -> None:
        canvas.box((x - 3, 226, x + 3, 248), "#17120c" if self.night else "#7c4a2d")
        for k in range(3):
            half, top = size * (19 - 4 * k), 226 - 18 * k - 18 * size
            leaf = "#12281f" if self.night else "#2f7d4f"
            canvas.polygon([(x - half, 232 - 18 * k), (x, top), (x + half, 232 - 18 * k)], leaf)


class Clock(Picture, frozen=True, tag="clock"):
    """A clock on a wall."""

    hour: int
    minute: int

    def draw(self, rng: Generator) -> Image.Image:
        """Draws it with all twelve numbers."""
        wall, rim = pick(rng, ("#d9c7a8", "#b8c4c2", "#c9b6c4")), pick(rng, ("#4a2f1b", "#1f2937"))
        canvas, x, y = Canvas(320, 320, wall), 160.0, 160.0
        canvas.circle((x, y), 128, "#fdfcf7", rim, 12)
        for k in range(60):
            angle, inner = math.radians(6 * k - 90), 106 if k % 5 == 0 else 111
            ends = [(x + r * math.cos(angle), y + r * math.sin(angle)) for r in (inner, 114)]
            canvas.line(ends, "#222222", 2.5 if k % 5 == 0 else 1)
        for number in range(1, 13):
            angle = math.radians(30 * number - 90)
            at = (x + 90 * math.cos(angle), y + 90 * math.sin(angle))
            canvas.text(at, str(number), 21, "#222222", "mm")
        turns = ((self.hour % 12 + self.minute / 60) / 12, 52, 6.0), (self.minute / 60, 84, 4.0)
        for turn, length, width in turns:
            angle = math.radians(360 * turn - 90)
            end = (x + length * math.cos(angle), y + length * math.sin(angle))
            canvas.line([(x, y), end], "#111827", width)
        canvas.circle((x, y), 7, "#b91c1c")
        return noisy(canvas.finish(), rng, light=0.25)


class Objects(Picture, frozen=True, tag="objects"):
    """Shapes in rows, for counting and comparing."""

    columns: int
    items: list[tuple[Shape, str]]  # shape and colour, row by row

    def draw(self, rng: Generator) -> Image.Image:
        """Draws it with slightly different sizes."""
        cell, rows = 84, -(-len(self.items) // self.columns)
        ground = pick(rng, ("#f1f5f9", "#fef7e0", "#e2e8f0"))
        canvas = Canvas(cell * self.columns + 20, cell * rows + 20, ground)
        for i, (shape, colour) in enumerate(self.items):
            row, column = divmod(i, self.columns)
            x, y = 10 + (column + 0.5) * cell, 10 + (row + 0.5) * cell
            _draw_shape(canvas, shape, (x, y), float(rng.uniform(25, 31)), COLOURS[colour])
        return canvas.finish()


def _draw_shape(
    canvas: Canvas, shape: Shape, centre: tuple[float, float], radius: float, colour: str
) -> None:
    x, y = centre
    if shape == "circle":
        canvas.circle(centre, radius, colour)
    elif shape == "ring":
        canvas.circle(centre, radius, None, colour, radius / 3)
    elif shape == "square":
        half = 0.85 * radius
        canvas.box((x - half, y - half, x + half, y + half), colour)
    else:
        count, inner = (3, 0.5) if shape == "triangle" else (5, 0.42)
        corners = []
        for k in range(2 * count):
            r = radius * (inner if k % 2 else 1)
            angle = math.pi * k / count - math.pi / 2
            corners.append((x + r * math.cos(angle), y + r * math.sin(angle)))
        canvas.polygon(corners, colour)


class Pattern(Picture, frozen=True, tag="pattern"):
    """A surface of two colours."""

    pattern: Literal["checks", "stripes", "dots", "waves"]
    colours: tuple[str, str]
    count: int  # of repetitions from left to right

    def draw(self, rng: Generator) -> Image.Image:
        """Draws it, faintly lit from one side."""
        size = 360
        canvas, step = Canvas(size, size, COLOURS[self.colours[0]]), size / self.count
        second = COLOURS[self.colours[1]]
        for column in range(self.count):
            x = column * step
            if self.pattern == "stripes":
                canvas.box((x, 0, x + step / 2, size), second)
            for row in range(self.count):
                y = row * step
                if self.pattern == "checks" and (row + column) % 2:
                    canvas.box((x, y, x + step, y + step), second)
                elif self.pattern == "dots":
                    canvas.circle((x + step / 2, y + step / 2), step / 4, second)
            if self.pattern == "waves":
                y = (column + 0.5) * step
                wave = [(k, y + step / 4 * math.sin(k / step * 2)) for k in range(0, size + 1, 4)]
                canvas.line(wave, second, step / 5)
        return noisy(canvas.finish(), rng, light=float(rng.uniform(0.1, 0.3)), grain=2)
