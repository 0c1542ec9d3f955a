"""The page in Chromium, over a stand-in of ArkWeb's bridge and the app's logic in ArkTS."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from android.harmony.project import TEMPLATE
from convert.bundle.manifest import WEIGHTS
from tests.android import test_page
from tests.android.bundle import fake_bundle
from tests.android.harmony.arkts_host import host_command
from tests.android.phone import ORIGIN, PagePhone, content_policy
from tests.support.screen import SIZES

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ARK = TEMPLATE / "entry/src/main/ets/ark"
# As App.ets has it; what stands between is an event's text as JavaScript.
_SCRIPT = ("window.receive && window.receive(JSON.parse(", "))")


class HarmonyPhone(PagePhone):
    """The app's logic, which runs JavaScript in the page."""

    def _deliver(self, events: list[dict[str, Any]]) -> None:
        for event in events:
            self.page.evaluate(json.dumps(json.dumps(event)).join(_SCRIPT))


@pytest.fixture
def start(
    browser: Browser, npm_packages: Path, tmp_path: Path
) -> Iterator[Callable[..., HarmonyPhone]]:
    started: list[HarmonyPhone] = []

    def begin(*, weights: bool = True) -> HarmonyPhone:
        bundle, folder = fake_bundle(tmp_path / "bundle"), tmp_path / "app"
        if weights:
            (folder / "files/bundle").mkdir(parents=True)
            shutil.copy(bundle / WEIGHTS, folder / "files/bundle")
        width, height = SIZES["phone"]
        page = browser.new_page(viewport={"width": width, "height": height})
        phone = HarmonyPhone(page, folder, host_command(npm_packages, folder, bundle))
        started.append(phone)
        phone.open()
        ready = "#start.empty" if weights else "#start.card"
        phone.until(
            f"document.querySelector('{ready}') && document.querySelector('#progress').hidden"
        )
        return phone

    yield begin
    for phone in started:
        phone.close()
        assert phone.errors == []


def test_a_picture_two_turns_and_history(
    start: Callable[..., HarmonyPhone], tmp_path: Path
) -> None:
    test_page.test_a_picture_two_turns_and_history(start, tmp_path)


def test_tags_are_text(start: Callable[..., HarmonyPhone]) -> None:
    start().shows_tags_as_text()


def test_the_first_start(start: Callable[..., HarmonyPhone], tmp_path: Path) -> None:
    """It says how a PC pushes the weights, and how much space there is; then they are imported."""
    phone = start(weights=False)
    shown = phone.page.inner_text("#start")
    assert "minicpmv sideload" in shown
    assert "Free space on this phone: 1.0 GiB" in shown
    phone.choose(tmp_path / "bundle" / WEIGHTS)
    phone.page.click("#start button.strong")
    phone.ready()
    phone.ask("hello")
    phone.answered(1)
    assert phone.turns() == ["hello", "1: hello"]


def test_the_bridge_is_the_one_that_is_tested() -> None:
    app = (ARK / "App.ets").read_text()
    assert f"runJavaScript('{_SCRIPT[0]}' + text + '{_SCRIPT[1]}')" in app
    assert "name: 'app'" in (ARK.parent / "pages/Index.ets").read_text()
    files = (ARK / "PageFiles.ets").read_text()
    policy = files.partition("const POLICY = ")[2].partition(";\nconst ")[0]
    assert "".join(re.findall(r'"([^"]*)"', policy)) == content_policy()
    assert f"'{ORIGIN[:-1]}'" in files
