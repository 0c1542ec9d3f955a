"""Documents on paper: a receipt, a form, a table, a note in handwriting, a page of a calendar."""

from __future__ import annotations

from PIL import Image

from convert.calibrate.drawings.canvas import (
    ACCENTS,
    INKS,
    PITCH,
    Canvas,
    Generator,
    photographed,
    pick,
)
from convert.calibrate.drawings.glyphs import write
from convert.calibrate.drawings.picture import Picture


class Receipt(Picture, frozen=True, tag="receipt"):
    """A till's receipt on a desk."""

    shop: str
    address: str
    date: str
    lines: list[tuple[str, str]]  # article and price
    total: str
    paid: str

    def draw(self, rng: Generator) -> Image.Image:
        """Draws it, askew and unevenly lit."""
        columns, left, size = 30, 16, 16
        step, width = 1.4 * size, round(columns * PITCH * size) + 2 * left
        canvas = Canvas(width, round(step * (len(self.lines) + 10.2)), "#f7f5ef")
        ink, y = pick(rng, INKS), 16.0
        rows = [self.shop.center(columns), self.address.center(columns), self.date.center(columns)]
        rows += ["-" * columns]
        rows += [f"{name:<{columns - len(price)}}{price}" for name, price in self.lines]
        rows += ["-" * columns, f"{'TOTAL':<{columns - len(self.total)}}{self.total}"]
        rows += [self.paid.center(columns), "", "THANK YOU".center(columns)]
        for row in rows:
            canvas.typed((left, y), row, size, ink)
            y += step
        return photographed(canvas.finish(), rng)


class Form(Picture, frozen=True, tag="form"):
    """A printed form, filled in; an empty value leaves the field blank."""

    title: str
    fields: list[tuple[str, str]]
    choices: list[tuple[str, bool]]  # and whether each is ticked
    signed: bool

    def draw(self, rng: Generator) -> Image.Image:
        """Draws it, with the values in another colour than the print."""
        canvas, pen = (
            Canvas(420, 90 + 40 * (len(self.fields) + 2)),
            pick(rng, ("#1d3fa8", "#222222")),
        )
        canvas.box((0, 0, 420, 46), pick(rng, ("#e5e7eb", "#dbeafe", "#fef3c7")))
        canvas.text((20, 23), self.title, 19, anchor="lm")
        y = 64.0
        for name, value in self.fields:
            canvas.text((20, y + 16), name, 13, "#444444", "lm")
            canvas.box((150, y, 400, y + 30), "white", "#888888")
            canvas.text((158, y + 16 + rng.uniform(-1, 1)), value, 15, pen, "lm")
            y += 40
        x = 20.0
        for name, ticked in self.choices:
            canvas.box((x, y + 6, x + 14, y + 20), "white", "#444444")
            if ticked:
                canvas.line([(x + 3, y + 12), (x + 6, y + 17), (x + 14, y + 2)], pen, 2)
            canvas.text((x + 22, y + 13), name, 13, "#444444", "lm")
            x += 44 + canvas.text_width(name, 13)
        y += 44
        canvas.text((20, y + 16), "Signature", 13, "#444444", "lm")
        canvas.line([(150, y + 26), (400, y + 26)], "#444444")
        if self.signed:
            height = rng.uniform(-9, 9, 24)
            curve = [(165 + 7 * i, y + 16 + float(h)) for i, h in enumerate(height)]
            canvas.line(curve, pen, 1.5)
        return canvas.finish()


class Table(Picture, frozen=True, tag="table"):
    """A printed table."""

    title: str
    head: list[str]
    rows: list[list[str]]

    def draw(self, rng: Generator) -> Image.Image:
        """Draws it with lines or with shaded rows."""
        width, row_height = 440, 30
        canvas = Canvas(width, 60 + row_height * (len(self.rows) + 1))
        accent, ruled = pick(rng, ACCENTS), bool(rng.random() < 0.5)
        canvas.text((20, 14), self.title, 17, "#222222")
        step = (width - 40) / len(self.head)
        for i, row in enumerate([self.head, *self.rows]):
            y = 46 + i * row_height
            shade = accent if i == 0 else "#f3f4f6" if i % 2 and not ruled else "white"
            canvas.box((20, y, width - 20, y + row_height), shade, "#9ca3af" if ruled else None)
            for k, cell in enumerate(row):
                colour = "white" if i == 0 else "#222222"
                canvas.text((28 + k * step, y + row_height / 2), cell, 13, colour, "lm")
        return canvas.finish()


class Note(Picture, frozen=True, tag="note"):
    """A note by hand: capitals, digits and a few Chinese characters, drawn stroke by stroke."""

    lines: list[str]

    def draw(self, rng: Generator) -> Image.Image:
        """Draws it on ruled paper."""
        size, paper = 34.0, pick(rng, ("#fffbe6", "#ffffff", "#fdf2f8"))
        longest = max(map(len, self.lines))
        width, height = max(260, round(longest * size * 0.92 + 60)), 40 + 56 * len(self.lines)
        canvas, pen = Canvas(width, height, paper), pick(rng, ("#1e3a8a", "#111827", "#7f1d1d"))
        for i, line in enumerate(self.lines):
            y = 20 + 56 * i
            canvas.line([(0, y + 44), (width, y + 44)], "#bfdbfe")
            write(canvas, (26, y + 2), line, size, pen, rng)
        return photographed(canvas.finish(), rng, desk="#8a8f98")


class Calendar(Picture, frozen=True, tag="calendar"):
    """A month, with some days marked."""

    title: str
    first: int  # the weekday of the 1st; Monday is 0
    days: int
    marked: list[tuple[int, str]]  # day and what is written on it

    def draw(self, rng: Generator) -> Image.Image:
        """Draws weeks as rows, beginning on Mondays."""
        cell, left, top = 60, 14, 70
        weeks = -(-(self.first + self.days) // 7)
        canvas, accent = Canvas(7 * cell + 2 * left, top + weeks * cell + 14), pick(rng, ACCENTS)
        canvas.text((left, 12), self.title, 22, accent)
        for i, name in enumerate(("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")):
            canvas.text((left + i * cell + cell / 2, 54), name, 12, "#555555", "mm")
        notes = dict(self.marked)
        for day in range(1, self.days + 1):
            week, weekday = divmod(self.first + day - 1, 7)
            x, y = left + weekday * cell, top + week * cell
            fill = "#fde68a" if day in notes else "white"
            canvas.box((x, y, x + cell, y + cell), fill, "#cbd5e1")
            canvas.text((x + 6, y + 4), str(day), 13, "#b91c1c" if weekday > 4 else "#222222")
            canvas.text((x + cell / 2, y + 42), notes.get(day, ""), 11, "#222222", "mm")
        return canvas.finish()
