"""Waits for what comes soon, and never for ever."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 60.0  # seconds; a busy machine takes its time


def until(
    condition: Callable[[], object],
    what: str = "it never happened",
    *,
    seconds: float = PATIENCE,
) -> None:
    """Waits until a condition holds.

    Args:
        condition: asked again and again.
        what: says what is wrong if it never holds.
        seconds: how long it may take.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.01)
