"""What a run of the tests makes once, whichever of its worker processes asks first."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Returns a folder of this run; the first process that asks for it fills it.

    The others wait meanwhile. Nobody alters what is in it.

    Args:
        factory: knows the run's base folder; that of a worker is a folder in it.
        name: of the folder, unique in the run.
        make: gets the empty folder and fills it. What it raises fails this process's tests; the
            next process tries again, in an empty folder of the next number.
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
