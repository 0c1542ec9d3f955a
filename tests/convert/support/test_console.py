"""The progress display."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from convert.support import console
from convert.support.console import Bars


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal receives."""
    stream = io.StringIO()
    shown = Console(file=stream, force_terminal=True, width=100)
    monkeypatch.setattr(console, "messages", lambda: shown)
    return stream


def test_bars_appear_with_the_first_stage_and_each_block_begins_without_any(
    terminal: io.StringIO,
) -> None:
    bars = Bars()
    with bars:
        pass
    assert terminal.getvalue() == ""
    with bars:
        bars("weights", 1, 4)
        bars("weights", 4, 4)
    assert "weights" in terminal.getvalue() and "100%" in terminal.getvalue()
    first = len(terminal.getvalue())
    with bars:
        bars("hashes", 0, 0)
    later = terminal.getvalue()[first:]
    assert "hashes" in later and "weights" not in later


def test_bars_are_silent_off_a_terminal(
    terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "messages", lambda: Console(file=terminal))
    with Bars() as bars:
        bars("weights", 1, 4)
    assert terminal.getvalue().strip() == ""
