"""Handwriting: capitals, digits and some Chinese characters, as strokes of a pen."""

from __future__ import annotations

from itertools import pairwise

from convert.calibrate.drawings.canvas import Canvas, Generator, Point

# Strokes of a character, apart; a stroke's points in turn, each two digits: x rightwards and y
# downwards on a grid from 0 to 9.
_STROKES = {
    "A": "194079 2666",
    "B": "1019 105061635414 145465685919",
    "C": "7260301316396977",
    "D": "1019 104073764919",
    "E": "70101979 1454",
    "F": "701019 1454",
    "G": "72603013163969777555",
    "H": "1019 7079 1474",
    "I": "4049",
    "J": "6067592917",
    "K": "1019 701579",
    "L": "101979",
    "M": "1910457079",
    "N": "19107970",
    "O": "40131649767340",
    "P": "1019 105061635414",
    "Q": "40131649767340 5679",
    "R": "1019 105061635414 3479",
    "S": "71502012246577692918",
    "T": "1070 4049",
    "U": "101639597670",
    "V": "104970",
    "W": "1029456970",
    "X": "1079 7019",
    "Y": "1044 704449",
    "Z": "10701979",
    "0": "40222749676240",
    "1": "224049",
    "2": "12205072641979",
    "3": "112060724476692918",
    "4": "501676 5359",
    "5": "7020145476692918",
    "6": "6023173969776516",
    "7": "107039",
    "8": "442240624417497744",
    "9": "74351320507259",
    ":": "4344 4748",
    ".": "4849",
    "-": "2565",
    "+": "4347 2565",
    "=": "2464 2767",
    "?": "12305072444647 4849",
    "一": "0595",
    "二": "2272 0898",
    "三": "1181 2474 0898",
    "十": "0494 5059",
    "人": "504409 4399",
    "大": "0393 504509 4499",
    "天": "1181 0494 514509 5499",
    "小": "505938 2307 7397",
    "上": "4048 4474 0898",
    "下": "0191 4149 4567",
    "中": "1292961612 5059",
    "日": "2070792920 2474",
    "月": "303619 30707968 3272 3575",
    "木": "0292 5059 5208 5298",
    "山": "5058 131898 9398",
    "水": "505938 134308 8254 5498",
    "火": "1325 8375 504509 4599",
    "开": "1181 0494 313519 6169",
}
GLYPHS = frozenset(_STROKES) | {" "}

_STEPS = 6  # of a stroke's straight part, which bends a little


def write(canvas: Canvas, at: Point, text: str, size: float, colour: str, rng: Generator) -> None:
    """Writes a line by hand; no two characters come out alike.

    Args:
        canvas: where to.
        at: the upper left corner.
        text: of the characters in `GLYPHS`.
        size: of a character, in pixels.
        colour: of the pen.
        rng: the hand.
    """
    x, y = at
    slant = float(rng.uniform(-0.05, 0.2))
    for char in text:
        if char != " ":
            place = (x + float(rng.uniform(-1, 1)), y + float(rng.uniform(-2, 2)))
            for stroke in _STROKES[char].split():
                points = _bent(stroke, place, size * float(rng.uniform(0.9, 1.05)), slant, rng)
                canvas.line(points, colour, 2.2)
        x += size * (0.5 if char == " " else 0.9)


def _bent(stroke: str, at: Point, size: float, slant: float, rng: Generator) -> list[Point]:
    """Returns a stroke's points on the canvas."""
    corners = [(int(x), int(y)) for x, y in zip(stroke[::2], stroke[1::2], strict=True)]
    found: list[Point] = []
    for (x0, y0), (x1, y1) in pairwise(corners):
        bend = float(rng.uniform(-0.3, 0.3))
        for step in range(_STEPS + 1):
            t = step / _STEPS
            aside = bend * 4 * t * (1 - t)
            x, y = x0 + t * (x1 - x0) + aside, y0 + t * (y1 - y0) + aside
            found.append((at[0] + size * (x + slant * (9 - y)) / 10, at[1] + size * y / 10))
    return found
