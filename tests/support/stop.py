"""Stops processes for a while."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.support.waiting import until


def stop(pid: int) -> None:
    """Stops a process by SIGSTOP, and waits until each of its threads stands still.

    The first thread takes the signal and stops the others; on a busy machine these go on until it
    runs.
    """
    os.kill(pid, signal.SIGSTOP)
    until(lambda: _stands_still(pid), f"process {pid} does not stop")


def _stands_still(pid: int) -> bool:
    """Says whether all threads are stopped, or dead: letters of proc(5)."""
    try:
        stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    except (FileNotFoundError, ProcessLookupError):  # a thread ended meanwhile
        return False
    return all(stat[stat.rindex(")") + 2] in "TZX" for stat in stats)
