"""Test data that is made once per run and shared by all worker processes."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Returns a folder of this run that the first process to ask fills; the others wait.

    No test may alter it.

    Args:
        factory: has the run's base folder; a worker's base folder lies in it.
        name: of the folder, unique in the run.
        make: fills the empty folder that it gets. If it raises, the tests that asked fail, and
            the next process tries again in a new folder.
    """
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    place = base / "once" / name
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        if made := lock.read():
            return place / made
        folder = place / str(sum(path.is_dir() for path in place.iterdir()))
        folder.mkdir()
        make(folder)
        lock.write(folder.name)
    return folder
