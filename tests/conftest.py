"""What many tests share: the demo's bundle. And `pytest -v` lists at its end what was measured."""

from __future__ import annotations

import importlib.util
import shutil
import signal
from pathlib import Path

import pytest

from convert.bundle.targets import is_host


def pytest_configure() -> None:
    """What a shell starts in the background ignores Ctrl-C, which tests send to their children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if terminalreporter.verbosity < 1:
        return
    reports = terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", [])
    measured = [pair for report in reports for pair in report.user_properties]
    if measured:
        terminalreporter.section("measured differences")
        for name, value in measured:
            terminalreporter.line(f"{name}: {value}")


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo, converted as its users do it, for this PC and for phones. Nobody alters it."""
    from convert.cli import main
    from runtime.engine_client.client import QEMU_PROGRAM

    if not is_host():
        pytest.skip("the host engine is for Linux on x86-64")
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("ziglang is not installed; it compiles the engine")
    if shutil.which(QEMU_PROGRAM) is None:
        pytest.skip(f"{QEMU_PROGRAM} is not installed; it runs the phone's program")
    folder = tmp_path_factory.mktemp("demo") / "bundle"
    assert main(["convert", "-o", str(folder), "--target", "host,android-arm64"]) == 0
    return folder
