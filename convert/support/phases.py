"""Times of a command's phases: wall-clock, and processor time including child processes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Phase:
    """The time that a phase took; a phase may consist of several blocks."""

    seconds: float = 0.0
    processor_seconds: float = 0.0


class Phases:
    """A timer for each phase, in the order in which they started."""

    def __init__(self) -> None:
        self.taken: dict[str, Phase] = {}
        self._apart = False

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Adds the time of the `with` block to a phase."""
        start, computed = time.monotonic(), self._computed()
        try:
            yield
        finally:
            phase = self.taken.setdefault(name, Phase())
            phase.seconds += time.monotonic() - start
            phase.processor_seconds += self._computed() - computed

    @contextmanager
    def charge_programs_to(self, name: str) -> Iterator[None]:
        """Charges the processor time of child processes in the `with` block to one phase.

        For child processes that run in parallel with other phases. Wall-clock time is still charged
        to the phase that waits for them.
        """
        before, self._apart = _of_programs(), True
        try:
            yield
        finally:
            self._apart = False
            phase = self.taken.setdefault(name, Phase())
            phase.processor_seconds += _of_programs() - before

    def _computed(self) -> float:
        return processor_seconds() - (_of_programs() if self._apart else 0.0)

    def to_json(self) -> dict[str, dict[str, float]]:
        """Returns wall-clock and processor seconds by phase."""
        return {
            name: {
                "seconds": round(phase.seconds, 2),
                "processor_seconds": round(phase.processor_seconds, 2),
            }
            for name, phase in self.taken.items()
        }


def _of_programs() -> float:
    times = os.times()
    return times.children_user + times.children_system


def processor_seconds() -> float:
    """Returns the processor time of this process and of the child processes it waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
