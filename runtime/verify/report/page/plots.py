"""The page's plots, as SVG in the page's own colours: light or dark as the reader has it."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from runtime.verify.check import Check
from runtime.verify.measure.logits import EDGES, Positions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INCHES = (3.6, 2.5)  # its text is readable on a phone that is 320 pixels wide
# Colours that stand for variables of the page's style; matplotlib knows no variables.
_INK, _MUTED, _BUNDLE, _EXPECTED, _BAD = (f"#0{i}0{i}0{i}" for i in range(1, 6))
_VARIABLES = {
    _INK: "--ink",
    _MUTED: "--line",
    _BUNDLE: "--bundle",
    _EXPECTED: "--expected",
    _BAD: "--bad",
}
_LEAST = 1e-12  # of 1 - cosine: less is float64's own rounding, and drawn as a gap
_BELOW: Mapping[str, Any] = {"linewidth": 5, "alpha": 0.5}  # seen under a line that covers it
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_STYLE: Mapping[str, Any] = {
    "svg.fonttype": "none",  # text stays text
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": _MUTED,
    "grid.linewidth": 0.5,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def sqnr_curve(name: str, checks: Sequence[Check]) -> str:
    """Draws SQNR along the layers: of the bundle, of the arithmetic's model, and the limit.

    Args:
        name: tells the plot from others on the page: letters and hyphens.
        checks: one for each layer, in their order.
    """

    def draw(axes: Axes) -> None:
        x = range(len(checks))
        mine = [_finite(c.value) for c in checks]
        axes.plot(x, [_finite(c.threshold) for c in checks], ":", color=_BAD, linewidth=1.2)
        axes.plot(x, [_finite(c.expected) for c in checks], color=_EXPECTED, **_BELOW)
        axes.plot(x, mine, color=_BUNDLE, linewidth=1.5)
        _mark(axes, checks, mine)
        _label_layers(axes, [c.name for c in checks])
        axes.set_ylabel("SQNR, dB")

    return _svg(name, draw)


def cosine_curve(name: str, checks: Sequence[Check]) -> str:
    """Draws how far cosines are from 1 along the layers; see `sqnr_curve`."""
    from matplotlib.ticker import LogLocator, NullLocator

    def distance(check: Check, key: str) -> float:
        value = 1 - check.detail[key]
        return value if value > _LEAST else math.nan

    def draw(axes: Axes) -> None:
        x = range(len(checks))
        mine = [distance(c, "cosine") for c in checks]
        axes.plot(x, [distance(c, "expected_cosine") for c in checks], color=_EXPECTED, **_BELOW)
        axes.plot(x, mine, color=_BUNDLE, linewidth=1.5)
        _mark(axes, checks, mine)
        known = [value for value in mine if math.isfinite(value)]
        if known:
            axes.set_yscale("log")
            decades = math.log10(max(known) / min(known))
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1,)))
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_locator(NullLocator())
        _label_layers(axes, [c.name for c in checks])
        axes.set_ylabel("1 - cosine")

    return _svg(name, draw)


def kl_histogram(name: str, positions: Positions) -> str:
    """Draws the share of positions by their KL divergence; the ends hold what lies beyond."""
    step = math.log10(EDGES[1]) - math.log10(EDGES[0])
    inner = [math.log10(edge) for edge in EDGES]
    edges = [inner[0] - step, *inner, inner[-1] + step]

    def draw(axes: Axes) -> None:
        mine, expected = (
            [100 * count / positions.count for count in sums.histogram]
            for sums in (positions.bundle, positions.arithmetic)
        )
        axes.stairs(mine, edges, color=_BUNDLE, fill=True, alpha=0.55)
        axes.stairs(expected, edges, color=_EXPECTED, linewidth=1.5, linestyle="--")
        axes.set_xlim(edges[0], edges[-1])
        axes.set_xticks(range(math.ceil(edges[0]), math.floor(edges[-1]) + 1, 2))
        axes.xaxis.set_major_formatter(lambda exponent, _: _power(exponent))
        axes.set_xlabel("KL divergence, nats")
        axes.set_ylabel("positions, %")

    return _svg(name, draw)


def _mark(axes: Axes, checks: Sequence[Check], values: Sequence[float]) -> None:
    """Marks the layers that failed; one without a figure stands at the bottom."""
    bottom = min((v for v in values if math.isfinite(v)), default=0.0)
    for i, (check, value) in enumerate(zip(checks, values, strict=True)):
        if not check.passed:
            height = value if math.isfinite(value) else bottom
            axes.plot([i], [height], "x", color=_BAD, markersize=8, markeredgewidth=2)


def _label_layers(axes: Axes, names: Sequence[str]) -> None:
    """Names the layers by their last word, as many as there is room for."""
    words = [name.rsplit(" ", 1)[-1] for name in names]
    step = -(-len(words) // 10)
    chosen = [i for i, word in enumerate(words) if word.isdigit() and int(word) % step == 0]
    axes.set_xticks(chosen, [words[i] for i in chosen])
    axes.set_xlabel(names[chosen[0]].rsplit(" ", 1)[0] if chosen else "")
    axes.set_xlim(-0.3, len(words) - 0.7)


def _power(exponent: float) -> str:
    return "10" + f"{round(exponent)}".translate(_SUPERSCRIPT)


def _finite(value: float) -> float:
    """Returns NaN for what cannot be drawn; lines have a gap there."""
    return value if math.isfinite(value) else math.nan


def _svg(name: str, draw: Callable[[Axes], None]) -> str:
    """Returns an `svg` element to stand in a page beside others."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=_INCHES, layout="constrained")
        draw(figure.add_subplot())
        file = io.StringIO()
        # Without metadata, the date above all: the same figures are the same bytes.
        empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=empty)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = svg.replace("<svg ", '<svg aria-hidden="true" ', 1)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg
