"""Conversion, verify and decode beside other work: `python -m tests.bench.load DIR [CHECKPOINT]`.

Each runs in turn alone and beside `stress-ng --cpu 2` (`apt-get install stress-ng`): the conversion
of CHECKPOINT without calibration, and its weights' stage; `minicpmv verify DIR`; and decoding with
DIR's engine. The ratio is the share of the speed that is kept beside other work, by the time that
passes (at least 1/3) and by the time of processors (at least 1/1.3), which threads waste if they
spin while they wait.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from convert.bundle.manifest import Bundle
from convert.support.console import messages, results
from quantize.errors import ToolkitError
from runtime.bench.inputs import LONG_ANSWER
from runtime.bench.runners import EngineRunner
from runtime.engine_client.client import EngineClient
from runtime.engine_client.options import EngineOptions
from runtime.engine_client.places import open_place
from tests.bench.against_gguf import run
from tests.bench.convert import convert
from tests.bench.processor_time import Stopwatch
from tests.bench.rounds import LEAST_ROUNDS, Row, exit_code, print_rows, report

WALL_TARGET, PROCESSOR_TARGET = 1 / 3, 1 / 1.3  # shares of the speed alone
PROCESSES = 2  # of the other work
WINDOW, TOKENS = 1024, 128
_DECODE_SECONDS = 3.0
PARTS = ("convert", "verify", "decode")
_SETTLE_SECONDS = 1.0


@dataclass(frozen=True)
class Took:
    """What some work took, in seconds."""

    wall: float
    processors: float


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, metavar="DIR", help="a bundle with a host engine")
    parser.add_argument("checkpoint", nargs="?", help="to convert (default: the demo checkpoint)")
    parser.add_argument("--rounds", type=int, default=LEAST_ROUNDS, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--only", choices=PARTS, help="default: all three")
    parser.add_argument("--json", action="store_true", help="print one line of JSON on stdout")
    args = parser.parse_args()
    try:
        rows = compare(Bundle.open(args.bundle), args)
    except ToolkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(report("load", rows, args.rounds, threads=args.threads)))
    else:
        print_rows(results(), rows, "loaded", "alone")
    return exit_code(rows)


def compare(bundle: Bundle, args: argparse.Namespace) -> list[Row]:
    """Measures; returns two rows for each kind of work.

    Raises:
        ToolkitError: the bundle cannot run here, a command fails, or there is no stress-ng.
    """
    rows = Rows()
    place = open_place(bundle, EngineOptions(threads=args.threads))
    with place.start() as client:
        works: dict[str, Callable[[], dict[str, Took]]] = {
            "convert": lambda: converted(args.checkpoint),
            "verify": lambda: verified(bundle.path, args.threads),
            "decode": Decoding(client, place.bundle).decoded,
        }
        for name, work in works.items():
            if args.only in (None, name):
                work()  # what is read and compiled once
                for i in range(args.rounds):
                    alone = work()
                    with other_work():
                        rows.add(alone, work())
                    messages().print(f"{name}, round {i + 1} of {args.rounds}")
    return rows.all()


@contextmanager
def other_work() -> Iterator[None]:
    """Computes on the processors meanwhile.

    Raises:
        ToolkitError: there is no stress-ng.
    """
    program = shutil.which("stress-ng")
    if program is None:
        raise ToolkitError("stress-ng is missing; try apt-get install stress-ng")
    command = [program, "--cpu", str(PROCESSES), "--quiet"]
    with subprocess.Popen(command) as process:
        try:
            time.sleep(_SETTLE_SECONDS)
            yield
        finally:
            process.terminate()


def converted(checkpoint: str | None) -> dict[str, Took]:
    """Converts for this PC; returns what all of it took, and its weights."""
    arguments = [*([checkpoint] if checkpoint else []), "--target", "host", "--method", "rtn"]
    summary = convert(arguments)
    weights = summary["phases"]["weights"]
    return {
        "convert": Took(summary["wall_s"], summary["processor_seconds"]),
        "convert, weights": Took(weights["seconds"], weights["processor_seconds"]),
    }


def verified(bundle: Path, threads: int) -> dict[str, Took]:
    """Verifies a bundle.

    Raises:
        ToolkitError: it does not pass.
    """
    command = [sys.executable, "-m", "convert.cli", "verify", str(bundle.resolve()), "--json"]
    used = run("minicpmv verify", command, threads)
    return {"verify": Took(used.seconds, used.processor_seconds)}


class Decoding:
    """An engine that answers at length, again and again."""

    def __init__(self, client: EngineClient, bundle: Path) -> None:
        """Loads the bundle, and counts the answers of some seconds."""
        self._runner = EngineRunner(client, bundle, window=WINDOW)
        self._watch = Stopwatch(client)
        self._runner.load()
        self._answers = 0
        end = time.monotonic() + _DECODE_SECONDS
        while time.monotonic() < end:
            self._runner.ask(LONG_ANSWER, None, TOKENS)
            self._answers += 1

    def decoded(self) -> dict[str, Took]:
        """Decodes as many answers; their prompt is in the cache."""
        milliseconds: list[float] = []

        def decode() -> None:
            for _ in range(self._answers):
                milliseconds.append(self._runner.ask(LONG_ANSWER, None, TOKENS).decode_ms)

        seconds = self._watch.seconds(decode)
        return {"decode": Took(sum(milliseconds) / 1000, seconds)}


class Rows:
    """Two rows for each kind of work, in the order of their first results."""

    def __init__(self) -> None:
        self._rows: dict[str, tuple[Row, Row]] = {}

    def add(self, alone: dict[str, Took], loaded: dict[str, Took]) -> None:
        """Adds a round."""
        for name, took in loaded.items():
            if name not in self._rows:
                self._rows[name] = (
                    Row(name, "s", WALL_TARGET, less_is_better=True),
                    Row(f"{name}, of processors", "s", PROCESSOR_TARGET, less_is_better=True),
                )
            wall, processors = self._rows[name]
            wall.add(took.wall, alone[name].wall)
            processors.add(took.processors, alone[name].processors)

    def all(self) -> list[Row]:
        """Returns all."""
        return [row for pair in self._rows.values() for row in pair]


if __name__ == "__main__":
    sys.exit(main())
