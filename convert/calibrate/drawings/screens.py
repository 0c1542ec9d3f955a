"""Screens: a dialog, a page of settings, an editor, a chat."""

from __future__ import annotations

from PIL import Image

from convert.calibrate.drawings.canvas import ACCENTS, PITCH, Canvas, Generator, pick
from convert.calibrate.drawings.picture import Picture


class Dialog(Picture, frozen=True, tag="dialog"):
    """A message in front of a desktop; the last button is the suggested one."""

    title: str
    message: list[str]
    buttons: list[str]

    def draw(self, rng: Generator) -> Image.Image:
        """Draws it with a warning sign."""
        canvas = Canvas(440, 300, pick(rng, ("#0f766e", "#1e3a8a", "#4c1d95")))
        for i in range(7):
            icon = pick(rng, ("#ffffff", "#fde68a", "#a7f3d0"))
            canvas.box((12 + 60 * i, 14, 44 + 60 * i, 46), icon, radius=6)
        canvas.box((0, 272, 440, 300), "#111827")
        canvas.text((428, 286), "14:05", 12, "white", "rm")
        canvas.box((40, 60, 400, 240), "#f3f4f6", "#9ca3af", radius=8)
        canvas.box((40, 60, 400, 92), "#374151", radius=8)
        canvas.text((54, 76), self.title, 14, "white", "lm")
        canvas.text((384, 76), "x", 14, "white", "mm")
        canvas.polygon([(78, 118), (102, 160), (54, 160)], "#f59e0b")
        canvas.text((78, 146), "!", 22, "white", "mm")
        for i, line in enumerate(self.message):
            canvas.text((118, 120 + 22 * i), line, 14, "#111827")
        right, accent = 386.0, pick(rng, ACCENTS)
        for i, name in enumerate(reversed(self.buttons)):
            width = canvas.text_width(name, 13) + 28
            fill, ink = (accent, "white") if i == 0 else ("white", "#111827")
            canvas.box((right - width, 200, right, 228), fill, "#9ca3af", radius=4)
            canvas.text((right - width / 2, 214), name, 13, ink, "mm")
            right -= width + 10
        return canvas.finish()


class Settings(Picture, frozen=True, tag="settings"):
    """A phone's page of switches."""

    title: str
    time: str
    battery: int  # per cent
    rows: list[tuple[str, bool]]

    def draw(self, rng: Generator) -> Image.Image:
        """Draws it light or dark."""
        dark, accent = bool(rng.random() < 0.5), pick(rng, ACCENTS)
        ground, ink = ("#111827", "#f9fafb") if dark else ("#f9fafb", "#111827")
        canvas = Canvas(270, 92 + 46 * len(self.rows), ground)
        canvas.text((16, 14), self.time, 12, ink, "lm")
        canvas.text((254, 14), f"{self.battery}%", 12, ink, "rm")
        canvas.text((16, 54), self.title, 24, ink, "lm")
        for i, (name, on) in enumerate(self.rows):
            y = 82 + 46 * i
            canvas.line([(16, y), (254, y)], "#4b5563" if dark else "#d1d5db")
            canvas.text((16, y + 23), name, 15, ink, "lm")
            canvas.box((214, y + 12, 254, y + 34), accent if on else "#9ca3af", radius=11)
            canvas.circle((243 if on else 225, y + 23), 9, "white")
        return canvas.finish()


class Editor(Picture, frozen=True, tag="editor"):
    """A program in an editor, with a line underlined and a message below."""

    file: str
    lines: list[str]
    wrong: int  # the number of the underlined line, from 1
    message: str

    def draw(self, rng: Generator) -> Image.Image:
        """Draws it in a font of fixed width."""
        ground, ink, aside = (
            ("#1e1e2e", "#cdd6f4", "#7f849c")
            if rng.random() < 0.6
            else ("#fdf6e3", "#3b4a50", "#93a1a1")
        )
        size, step = 14, PITCH * 14
        longest = max(map(len, [*self.lines, self.message]))
        canvas = Canvas(round(step * longest) + 64, 22 * len(self.lines) + 84, ground)
        canvas.box((0, 0, canvas.width, 28), "#313244")
        canvas.typed((12, 6), self.file, size, "#f5e0dc")
        for i, line in enumerate(self.lines, 1):
            y = 16 + 22 * i
            canvas.typed((8, y), f"{i:>3}", size, aside)
            canvas.typed((48, y), line, size, ink)
            if i == self.wrong:
                indent = len(line) - len(line.lstrip())
                steps = range(2 * indent, 2 * len(line) + 1)
                wave = [(48 + k * step / 2, y + 17 + 2 * (k % 2)) for k in steps]
                canvas.line(wave, "#ef4444", 1)
        y = canvas.height - 30
        canvas.box((0, y, canvas.width, canvas.height), "#7f1d1d")
        canvas.typed((10, y + 7), self.message, size, "white")
        return canvas.finish()


class Chat(Picture, frozen=True, tag="chat"):
    """A conversation on a phone; the owner's messages stand on the right."""

    name: str
    messages: list[tuple[str, bool]]  # text, and whether it is the owner's

    def draw(self, rng: Generator) -> Image.Image:
        """Draws it as bubbles."""
        accent = pick(rng, ("#22c55e", "#2563eb", "#0891b2"))
        canvas = Canvas(300, 70 + 44 * len(self.messages), pick(rng, ("#ece5dd", "#f1f5f9")))
        canvas.box((0, 0, 300, 48), "#1f2937")
        canvas.circle((28, 24), 15, pick(rng, ("#f59e0b", "#ec4899", "#8b5cf6")))
        canvas.text((28, 24), self.name[0], 16, "white", "mm")
        canvas.text((54, 24), self.name, 16, "white", "lm")
        for i, (text, mine) in enumerate(self.messages):
            width, y = canvas.text_width(text, 13) + 24, 60 + 44 * i
            x = 290 - width if mine else 10
            canvas.box((x, y, x + width, y + 34), accent if mine else "white", radius=12)
            canvas.text((x + 12, y + 17), text, 13, "white" if mine else "#111827", "lm")
        return canvas.finish()
