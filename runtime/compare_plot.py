"""A plot of what bundles weigh against what they lose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantize.errors import ConfigError

SUFFIXES = (".svg", ".png", ".pdf")
_INCHES = (7.0, 4.5)
_MARKS = {"image": "s", "text": "o", "answer": "^"}  # by the kind of position


def check_plot(path: Path) -> None:
    """Checks, before anything takes long, that a plot can be drawn.

    Raises:
        ConfigError: a format that is not drawn, no such folder, or matplotlib is not installed.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"--plot is {path}; expected a name that ends in {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise ConfigError(f"--plot is {path}; there is no folder {path.parent}")
    try:
        import matplotlib  # noqa: F401  # only whether it is there
    except ImportError as error:
        raise ConfigError(
            "--plot is drawn with matplotlib; try `pip install matplotlib`"
        ) from error


def draw(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draws size against KL divergence: a line for each kind of position, a mark for each bundle.

    Args:
        path: the file, of a suffix of `SUFFIXES`.
        rows: see `runtime.compare_command.compare`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, layout="constrained")
    axes = figure.add_subplot()
    ordered = sorted(rows, key=lambda row: row["weights_bytes"])
    sizes = [row["weights_bytes"] / 2**20 for row in ordered]
    losses: list[float] = []
    for kind, mark in _MARKS.items():
        values = [row["kl_nats"].get(kind) for row in ordered]
        if None not in values:
            axes.plot(sizes, values, marker=mark, label=f"at {kind} tokens")
            losses += values
    for size, row in zip(sizes, ordered, strict=True):
        axes.axvline(size, color="0.9", zorder=0)
        axes.annotate(
            row["name"], (size, 1), xycoords=("data", "axes fraction"), rotation=30, fontsize=8,
            textcoords="offset points", xytext=(0, 3), annotation_clip=False,
        )  # fmt: skip
    if losses and min(losses) > 0:
        axes.set_yscale("log")
    axes.set_xlabel("weights, MiB")
    axes.set_ylabel("KL divergence, nats")
    axes.legend()
    temporary = path.with_name(f".{path.name}.partial")
    try:
        figure.savefig(temporary, format=path.suffix[1:], metadata=_without_date(path))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _without_date(path: Path) -> dict[str, None]:
    """Returns the metadata that make the same plot the same file."""
    return {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix, {})
