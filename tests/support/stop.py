"""Stops processes for a while."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

_PATIENCE = 60.0  # seconds


def stop(pid: int) -> None:
    """Stops a process by SIGSTOP, and waits until each of its threads stands still.

    The first thread takes the signal and stops the others; on a busy machine these go on until it
    runs.
    """
    os.kill(pid, signal.SIGSTOP)
    end = time.monotonic() + _PATIENCE
    while not _stands_still(pid):
        assert time.monotonic() < end, f"process {pid} does not stop"
        time.sleep(0.001)


def _stands_still(pid: int) -> bool:
    """Says whether all threads are stopped, or dead: letters of proc(5)."""
    try:
        stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    except (FileNotFoundError, ProcessLookupError):  # a thread ended meanwhile
        return False
    return all(stat[stat.rindex(")") + 2] in "TZX" for stat in stats)
