"""A plot of the bundles' sizes against their loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convert.support.whole_file import check_replaceable, whole_file
from quantize.errors import ConfigError

SUFFIXES = (".svg", ".png", ".pdf")
_INCHES = (7.0, 4.5)
_MARKS = {"image": "s", "text": "o", "answer": "^"}  # by the kind of position


def check_plot(path: Path) -> None:
    """Checks before the measurement that a plot can be drawn.

    Raises:
        ConfigError: a format that is not drawn, no such folder, or matplotlib is not installed.
        OutputFileError: the path is something other than a file.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"--plot is {path}; expected a name that ends in {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise ConfigError(f"--plot is {path}; there is no folder {path.parent}")
    check_replaceable(path)
    try:
        import matplotlib  # noqa: F401  # only whether it is there
    except ImportError as error:
        raise ConfigError(
            "--plot is drawn with matplotlib; try `pip install matplotlib`"
        ) from error


def draw(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draws size against KL divergence: a colour for each bundle, a mark for each kind of position.

    Args:
        path: the file, of a suffix of `SUFFIXES`.
        rows: see `runtime.commands.compare.compare`.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=_INCHES, layout="constrained")
    axes = figure.add_subplot()
    losses: list[float] = []
    for i, row in enumerate(rows):
        size = row["weights_bytes"] / 2**20
        for kind, value in row["kl_nats"].items():
            axes.plot([size], [value], marker=_MARKS[kind], color=f"C{i}", linestyle="none")
            losses.append(value)
    if losses and min(losses) > 0:
        axes.set_yscale("log")
    axes.set_xlabel("weights, MiB")
    axes.set_ylabel("KL divergence, nats")
    axes.margins(0.1)
    axes.grid(alpha=0.3)
    names = [Line2D([], [], color=f"C{i}", label=row["name"]) for i, row in enumerate(rows)]
    kinds = [
        Line2D([], [], marker=mark, color="0.4", linestyle="none", label=f"at {kind} tokens")
        for kind, mark in _MARKS.items()
        if any(kind in row["kl_nats"] for row in rows)
    ]
    figure.legend(handles=[*names, *kinds], loc="outside right upper")
    with whole_file(path) as file:
        figure.savefig(file, format=path.suffix[1:], metadata=_without_date(path))


def _without_date(path: Path) -> dict[str, None]:
    """Returns metadata with which the same plot gives the same file."""
    return {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix, {})
