"""What many tests share: the demo's bundle. `pytest -v` lists what was measured at its end."""

from __future__ import annotations

import importlib.util
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from convert.cli import let_threads_sleep, main
from tests.support.fake_phone import FakePhone, fake_phone
from tests.support.needs import need_host_engine
from tests.support.once import once

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def pytest_configure() -> None:
    """What a shell starts in the background ignores Ctrl-C, which tests send to their children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    let_threads_sleep()


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
    """The demo without calibration, for this PC and for phones. Nobody alters it."""
    need_host_engine()

    def make(folder: Path) -> None:
        command = ["convert", "-o", str(folder / "bundle"), "--target", "host,android-arm64"]
        assert main([*command, "--quant", "q4f16_1"]) == 0

    return once(tmp_path_factory, "demo", make) / "bundle"


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePhone:
    """A folder that plays a phone; the adb that is found talks to it."""
    return fake_phone(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium without a screen."""
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("playwright is not installed")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not installed; it is in Debian's package of that name")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()
