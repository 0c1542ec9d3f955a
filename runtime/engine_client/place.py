"""A place where an engine runs: what every kind of place offers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

from convert.support.progress import Progress
from runtime.engine_client.client import EngineClient

THREADS_VARIABLE = "TVM_NUM_THREADS"


class Device(Protocol):
    """A machine that can run a bundle's engine."""

    engine: str  # a value of `--engine`
    description: str
    target: str  # whose program runs there
    bundle: Path  # the bundle's folder, as the engine sees it

    def prepare(self, progress: Progress) -> None:
        """Brings what is needed there, unless it is there already."""

    def brought(self, progress: Progress) -> dict[str, bool]:
        """Returns whether the files that were brought there are still what the manifest names."""

    def await_return(self, reason: str) -> None:
        """Waits for a machine that went away.

        Args:
            reason: how that showed.

        Raises:
            ToolkitError: it does not come back; says what to try.
        """

    def start(self) -> EngineClient:
        """Starts an engine, if its program is the bundle's own; the caller closes it."""


def may_name_a_file(program_id: str) -> bool:
    """Says whether a program id, as a bundle has it, is a hash, and so names a file of its own."""
    return re.fullmatch(r"[0-9a-zA-Z]{8,}", program_id) is not None


def threads_environment(threads: int | None) -> dict[str, str]:
    """Returns the variables that set an engine's number of threads."""
    return {} if threads is None else {THREADS_VARIABLE: str(threads)}
