"""Shows what tests measured: `pytest -v` lists every recorded difference at its end."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if terminalreporter.verbosity < 1:
        return
    reports = terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", [])
    measured = [pair for report in reports for pair in report.user_properties]
    if measured:
        terminalreporter.section("measured differences")
        for name, value in measured:
            terminalreporter.line(f"{name}: {value}")
