"""Kernels whose threads share work by pieces, and by equal parts: `python -m tests.bench.sharing`.

A kernel has 144 equal items, as many as a matrix of the decoder has tiles, and computes only. It
runs in turn with one part for each thread and as the engine's pool cuts it, on two threads bound to
two cores, or on two that may move: alone; with one thread that does everything twice, as a core at
half speed would; beside a process that spins on one of the two cores; on one core (`taskset`); and
under a quota of 1.5 cores (version 1 of cgroups, as root). The ratio is how many times faster
sharing is. With --realtime the cases without other load run before all other programs (`chrt`, as
root), which have no core meanwhile: for a machine that others use.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from convert.support.console import results
from quantize.errors import ToolkitError
from tests.bench.rounds import LEAST_ROUNDS, Row, print_rows, report
from tests.engine.thread_program import build_threads

THREADS, ITEMS = 2, 144
STEPS = (1_000, 20_000)  # of an item: a decoder's kernel at one token, and with many
_CGROUP = Path("/sys/fs/cgroup/cpu")
_PERIOD_US = 100_000
_REALTIME = ("chrt", "-r", "1")
_SPIN = "while True: pass"


Beside = Callable[[], AbstractContextManager[list[str]]]  # gives words to put before a command


def _nothing() -> AbstractContextManager[list[str]]:
    return nullcontext([])


@dataclass(frozen=True)
class Case:
    """Where and how a kernel runs."""

    name: str
    slow: bool = False  # all threads but the launching one do everything twice
    bound: bool = False
    cores: str = ""  # that it may use, as `taskset` takes them
    beside: Beside = _nothing


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=LEAST_ROUNDS, help="default: %(default)s")
    parser.add_argument("--realtime", action="store_true", help="see above")
    parser.add_argument("--json", action="store_true", help="print one line of JSON on stdout")
    args = parser.parse_args()
    try:
        rows = compare(args.rounds, realtime=args.realtime)
    except ToolkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(report("sharing", rows, args.rounds, threads=THREADS)))
    else:
        print_rows(results(), rows, "sharing", "equal parts")
    return 0


def compare(rounds: int, *, realtime: bool) -> list[Row]:
    """Measures; returns a row for each case and length of a kernel.

    Raises:
        ToolkitError: the program cannot be built.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "program"
        build_threads(program)
        for case in _cases():
            for steps in STEPS:
                row = Row(f"{case.name}, {steps} steps an item", "µs", less_is_better=True)
                for _ in range(rounds):
                    with case.beside() as words:
                        if realtime and case.beside is _nothing:
                            words = [*_REALTIME]
                        equal, shared = _timed([*words, str(program)], case, steps)
                    row.add(shared, equal)
                rows.append(row)
    return rows


def _cases() -> Iterator[Case]:
    yield Case("alone")
    yield Case("alone, bound", bound=True)
    yield Case("a slow thread", slow=True, bound=True)
    yield Case("a spinning process", beside=_spinning)
    yield Case("a spinning process, bound", bound=True, beside=_spinning)
    yield Case("one core", cores="0")
    if os.access(_CGROUP / "cpu.cfs_quota_us", os.W_OK):
        yield Case("a quota of 1.5 cores", beside=_quota)


def _timed(command: list[str], case: Case, steps: int) -> tuple[float, float]:
    """Returns the µs of a launch in equal parts, and with sharing."""
    if case.cores:
        command = ["taskset", "-c", case.cores, *command]
    numbers = (THREADS, ITEMS, steps, int(case.slow), int(case.bound))
    done = subprocess.run(
        [*command, "time", *map(str, numbers)], capture_output=True, text=True, check=True
    )
    median, mean, shared_median, shared_mean = map(float, done.stdout.split())
    # What loads a core does it by turns, longer than a kernel, and the median would see one kind.
    return (median, shared_median) if case.beside is _nothing else (mean, shared_mean)


@contextmanager
def _spinning() -> Iterator[list[str]]:
    """Spins on the second core meanwhile."""
    with subprocess.Popen(["taskset", "-c", "1", sys.executable, "-c", _SPIN]) as process:
        try:
            yield []
        finally:
            process.terminate()


@contextmanager
def _quota() -> Iterator[list[str]]:
    """Gives the words that put a command into a group with a quota."""
    group = Path(tempfile.mkdtemp(prefix="sharing-", dir=_CGROUP))
    try:
        (group / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
        (group / "cpu.cfs_quota_us").write_text(str(_PERIOD_US * 3 // 2))
        yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]
    finally:
        group.rmdir()


if __name__ == "__main__":
    sys.exit(main())
