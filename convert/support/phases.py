"""How long the phases of a work take: by the clock, and of processors, programs it ran included."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Phase:
    """What a phase took, all its parts together."""

    seconds: float = 0.0
    processor_seconds: float = 0.0


class Phases:
    """A clock for each phase, in the order in which they began."""

    def __init__(self) -> None:
        self.taken: dict[str, Phase] = {}
        self._apart = False

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Adds what happens inside the `with` block to a phase."""
        start, computed = time.monotonic(), self._computed()
        try:
            yield
        finally:
            phase = self.taken.setdefault(name, Phase())
            phase.seconds += time.monotonic() - start
            phase.processor_seconds += self._computed() - computed

    @contextmanager
    def programs_apart(self, name: str) -> Iterator[None]:
        """Gives one phase all that programs compute inside the `with` block, whenever they run.

        It is for programs that run beside other phases. Seconds by the clock are those of whoever
        waits for them.
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
        """Returns seconds by phase."""
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
    """Returns what this process and the programs that it waited for computed."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
