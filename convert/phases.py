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

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Adds what happens inside the `with` block to a phase."""
        start, computed = time.monotonic(), processor_seconds()
        try:
            yield
        finally:
            phase = self.taken.setdefault(name, Phase())
            phase.seconds += time.monotonic() - start
            phase.processor_seconds += processor_seconds() - computed

    def to_json(self) -> dict[str, dict[str, float]]:
        """Returns seconds by phase."""
        return {
            name: {
                "seconds": round(phase.seconds, 2),
                "processor_seconds": round(phase.processor_seconds, 2),
            }
            for name, phase in self.taken.items()
        }


def processor_seconds() -> float:
    """Returns what this process and the programs that it waited for computed."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
