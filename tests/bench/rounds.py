"""Side by side in rounds, A, B, A, B and so on: a slow moment of the machine hits both sides.

What counts is the median of the rounds' ratios, not the ratio of two medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from convert.support.console import print_table
from tests.bench import processor_time
from tests.bench.convert import commit, machine, spread

LEAST_ROUNDS = 5
_PAUSE_SECONDS = 0.2  # threads of either side wait actively for a moment after their work


@dataclass
class Row:
    """One quantity of both sides: a value per round."""

    name: str
    unit: str
    target: float | None = None  # least median of the ratios; None: only reported
    less_is_better: bool = False
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    def add(self, ours: float, theirs: float) -> None:
        """Adds a round."""
        self.ours.append(ours)
        self.theirs.append(theirs)

    @property
    def ratios(self) -> list[float]:
        """How many times better we are, by round."""
        pairs = zip(self.ours, self.theirs, strict=True)
        return [b / a if self.less_is_better else a / b for a, b in pairs]

    @property
    def reached(self) -> bool | None:
        """Says whether the target is reached; None if there is none."""
        return None if self.target is None else statistics.median(self.ratios) >= self.target

    def to_json(self) -> dict[str, Any]:
        """Returns all that was measured."""
        described: dict[str, Any] = {"name": self.name, "unit": self.unit}
        for side in ("ours", "theirs", "ratios"):
            values = getattr(self, side)
            described[side] = spread(values) | {"values": values}
        return described | {"target": self.target, "reached": self.reached}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what all comparisons take."""
    parser.add_argument("--rounds", type=int, default=LEAST_ROUNDS, help="default: %(default)s")
    clock = parser.add_mutually_exclusive_group()
    clock.add_argument("--threads", type=int, default=2, help="of each side (default: 2)")
    clock.add_argument(processor_time.OPTION, action="store_true", help=processor_time.HELP)
    parser.add_argument("--json", action="store_true", help="print one line of JSON on stdout")


def alternate(rounds: int, *sides: Callable[[], None], on_round: Callable[[int], None]) -> None:
    """Runs every side once per round, one after the other."""
    for i in range(rounds):
        for side in sides:
            side()
            time.sleep(_PAUSE_SECONDS)
        on_round(i + 1)


def report(bench: str, rows: Sequence[Row], rounds: int, **more: Any) -> dict[str, Any]:
    """Returns a report, as JSON has it: what was compared, where, and at which commit."""
    described = {"bench": bench, "rounds": rounds, "rows": [row.to_json() for row in rows]}
    described |= {"commit": commit(), "machine": machine(), "load_average": os.getloadavg()[0]}
    return described | more


def print_rows(console: Console, rows: Sequence[Row], ours: str, theirs: str) -> None:
    """Prints the table: medians of both sides, then the ratios with least and most."""
    header = ["", "unit", ours, theirs, "ratio", "min", "max", "target", ""]
    verdicts = {None: "", True: "reached", False: "missed"}
    lines = []
    for row in rows:
        ratios = row.ratios
        middle = (statistics.median(values) for values in (row.ours, row.theirs, ratios))
        lines.append([row.name, row.unit, *middle, min(ratios), max(ratios)])
        lines[-1] += ["" if row.target is None else f"{row.target:g}", verdicts[row.reached]]
    print_table(console, header, lines)


def exit_code(rows: Sequence[Row]) -> int:
    """Returns 1 if a target is missed where it holds: on two cores or more with AVX512-VNNI."""
    missed = any(row.reached is False for row in rows)
    return int(missed and "avx512_vnni" in features() and (os.cpu_count() or 1) >= 2)


def features(info: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Returns what Linux says that the processor can."""
    lines = info.read_text("utf-8").splitlines() if info.is_file() else []
    flags = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(flags, "").split())
