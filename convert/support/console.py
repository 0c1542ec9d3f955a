"""Terminal output shared by the commands: consoles, progress bars, tables, sizes."""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import cache
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress


class _Console(Console):
    """A console that leaves a broken pipe to the command."""

    def on_broken_pipe(self) -> None:
        """Raises the error again; rich would exit with 1, the code of a failed check."""
        raise  # called where BrokenPipeError is handled


@cache
def messages() -> Console:
    """Returns stderr's console: progress, logs and, with `--json`, all text meant for people."""
    return _Console(stderr=True, highlight=False)


@cache
def results() -> Console:
    """Returns stdout's console, for a command's results."""
    return _Console(highlight=False)


class LogHandler(logging.Handler):
    """Shows log messages above the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints a record; a warning or an error begins with its level."""
        text = self.format(record)
        if record.levelno >= logging.WARNING:
            text = f"{record.levelname.lower()}: {text}"
        with suppress(OSError):  # a closed stderr must not end the work
            messages().print(text, markup=False, soft_wrap=True)


def print_table(console: Console, header: list[str], rows: list[list[Any]]) -> None:
    """Prints a table; columns of numbers or sizes are aligned to the right.

    Lines are never wrapped, so that pipes and files get whole rows.
    """
    columns = list(zip(*rows, strict=True)) if rows else [() for _ in header]
    texts = [[_text(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in texts) for i in range(len(header))]
    right = [bool(c) and all(isinstance(v, (int, float, Size)) for v in c) for c in columns]
    for row in texts:
        cells = (
            text.rjust(width) if is_right else text.ljust(width)
            for text, width, is_right in zip(row, widths, right, strict=True)
        )
        console.print("  ".join(cells).rstrip(), markup=False, soft_wrap=True)


class Size(int):
    """A number of bytes, shown as KiB, MiB or GiB."""

    def __str__(self) -> str:
        for unit, power in (("GiB", 30), ("MiB", 20)):
            if self >= 2**power:
                return f"{self / 2**power:,.2f} {unit}"
        return f"{self / 2**10:,.1f} KiB"


def megabytes(size: int) -> str:
    """Returns a size in MB (10^6 bytes), followed by what `Size` prints."""
    return f"{size / 1e6:,.0f} MB ({Size(size)})"


class Bars:
    """Progress bars, one per stage, on a terminal only. Use as a context manager.

    The display starts with the first stage and ends with the `with` block. The same object may be
    used for further blocks; each starts without bars.
    """

    def __init__(self) -> None:
        self._progress = _new_display()
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int, /) -> None:
        """Updates a stage's bar, or adds it; see `Progress`."""
        if not self._tasks:
            self._progress.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=None)
        self._progress.update(self._tasks[stage], completed=done, total=total or None)

    def __enter__(self) -> Bars:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._tasks:
            self._progress.stop()
            self._progress, self._tasks = _new_display(), {}


def _new_display() -> RichProgress:
    return RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=messages(),
        disable=not messages().is_terminal,
    )


def _text(cell: Any) -> str:
    if isinstance(cell, tuple):
        return " x ".join(map(str, cell))
    if isinstance(cell, Size) or not isinstance(cell, (int, float)):
        return str(cell)
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:,.2f}"
