"""Time that a process really computed: what counts on a machine that others use, too.

Only with one thread: threads that wait for each other actively count as computing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from runtime.engine_client.client import EngineClient

OPTION = "--processor-time"
HELP = (
    "one thread of each side, and the time that it computed instead of what passed: for a machine "
    "that others use at the same time; targets are not judged"
)


def processor_seconds(pid: int, proc: Path = Path("/proc")) -> float:
    """Returns the seconds that a process's threads have computed so far."""
    total = 0
    for task in (proc / str(pid) / "task").iterdir():
        try:
            total += int((task / "schedstat").read_text("ascii").split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue  # a thread that ended just now
    return total / 1e9


class Stopwatch:
    """Measures what an engine computes between two moments."""

    def __init__(self, client: EngineClient) -> None:
        self._pid = client._process._process.pid  # nobody else has asked for it yet

    def seconds(self, work: Callable[[], object]) -> float:
        """Does something; returns the seconds that the engine computed."""
        before = processor_seconds(self._pid)
        work()
        return processor_seconds(self._pid) - before
