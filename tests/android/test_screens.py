"""Every screen of the app in every look: nothing is cut off, and axe-core finds no fault.

`make screenshots` keeps the pictures that these tests take.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from convert.bundle.manifest import WEIGHTS
from tests.android.bundle import FAKE_ENGINE, fake_bundle
from tests.support.screen import PICTURE, SIZES

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.android.phone import Phone

# name: size, language, dark, font size in percent
LOOKS: dict[str, tuple[str, str, bool, int]] = {
    "phone-light-en": ("phone", "en", False, 100),
    "phone-dark-zh": ("phone", "zh-CN", True, 100),
    "tablet-light-zh": ("tablet", "zh-CN", False, 100),
    "tablet-dark-en": ("tablet", "en", True, 100),
    "phone-light-en-200": ("phone", "en", False, 200),
    "small-dark-zh-200": ("small", "zh-CN", True, 200),
}
_CHATS = {
    "en": (
        ("What is in this picture?", "A **red star** with five points, on a pale blue ground."),
        (
            "Write it as a list and as code.",
            "1. a star, *red*\n2. the ground, *pale blue*\n\n```json\n"
            '{"shape": "star", "colour": "red"}\n```\n\n'
            "| shape | colour |\n|---|---|\n| star | red |\n\n> Nothing else is in it.",
        ),
    ),
    "zh": (
        ("这张图片里有什么？", "一个**红色的五角星**，背景是淡蓝色的。"),
        (
            "请用列表和代码写出来。",
            "1. 五角星：*红色*\n2. 背景：*淡蓝色*\n\n```json\n"
            '{"形状": "五角星", "颜色": "红色"}\n```\n\n'
            "| 形状 | 颜色 |\n|---|---|\n| 五角星 | 红色 |\n\n> 图片里没有别的东西。",
        ),
    ),
}
PANELS = (("check", ".results"), ("bench", "dl"), ("about", "dl"), ("api", "dl"))
_PICTURE_ID = "5d1fbb9e-6f5c-4c39-8a51-0f3b6d1f0c11"
# Small targets that a finger can hit: what is neither hidden nor reached only by keys.
_SMALL_TARGETS = """() => [...document.querySelectorAll('button, select, summary, textarea,'
    + 'input:not([type=checkbox]), .field.check label')].filter((e) => {
    const box = e.getBoundingClientRect();
    return e.offsetParent !== null && getComputedStyle(e).pointerEvents !== 'none'
        && (box.width < 48 || box.height < 48) && !e.matches('.composer textarea, #question');
}).map((e) => e.outerHTML.slice(0, 99))"""


@pytest.fixture(params=LOOKS)
def look(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def open_app(
    look: str,
    browser: Browser,
    java_classpath: str,
    npm_packages: Path,
    tmp_path: Path,
) -> Iterator[Callable[..., Phone]]:
    """Opens the app in one of the looks, with chats from earlier."""
    from tests.android.phone import Phone

    size, language, dark, percent = LOOKS[look]
    width, height = SIZES[size]
    bundle = fake_bundle(tmp_path / "bundle", slices=9)
    opened: list[Phone] = []

    def begin(*, weights: bool = True) -> Phone:
        if weights:
            shutil.copy(bundle / WEIGHTS, tmp_path / "beside")
        _write_chats(tmp_path / "app" / "files", language[:2])
        phone = Phone(
            browser.new_page(viewport={"width": width, "height": height}),
            java_classpath,
            tmp_path / "app",
            bundle,
            [sys.executable, str(FAKE_ENGINE)],
            beside=tmp_path / "beside",
            language=language,
            dark=dark,
            api=0,
        )
        opened.append(phone)
        phone.open()
        phone.page.evaluate(f"document.documentElement.style.fontSize = '{percent}%'")
        phone.page.evaluate((npm_packages / "axe-core/axe.min.js").read_text("utf-8"))
        phone.until(
            f"document.querySelector('{'#start.empty' if weights else '#start.card'}')"
            " && document.querySelector('#progress').hidden"
        )
        return phone

    yield begin
    for phone in opened:
        phone.close()
        assert phone.errors == []


@pytest.fixture
def check(look: str, tmp_path: Path) -> Callable[[Phone, str], None]:
    """Checks a screen and takes its picture."""

    def check(phone: Phone, name: str) -> None:
        phone.shoot(f"{look}-{name}", tmp_path)
        assert phone.fits(), name
        assert phone.page.evaluate(_SMALL_TARGETS) == [], name
        found: list[dict[str, Any]] = phone.page.evaluate(
            "axe.run(document, {resultTypes: ['violations']}).then((r) => r.violations)"
        )
        faults = [(f["id"], f["help"], [n["html"] for n in f["nodes"]]) for f in found]
        assert faults == [], f"{name}: {faults}"

    return check


def test_first_start(open_app: Callable[..., Phone], check: Callable[[Phone, str], None]) -> None:
    phone = open_app(weights=False)
    check(phone, "first-start")


def test_chats(
    open_app: Callable[..., Phone], check: Callable[[Phone, str], None], tmp_path: Path
) -> None:
    phone = open_app()
    page = phone.page
    page.click("#new-chat")
    phone.until("!document.querySelector('#start').hidden")
    check(phone, "empty")
    is_wide = page.is_hidden("#open-history")
    if not is_wide:
        page.click("#open-history")
    phone.until("[...document.querySelectorAll('.thumb img')].every((e) => e.complete)")
    page.locator(".chats .icon").first.click()
    page.click(".chats .danger")
    check(phone, "history")
    page.locator(".chats .open").first.click()
    phone.answered(2)
    phone.until("[...document.querySelectorAll('.picture img')].every((e) => e.naturalWidth > 0)")
    page.evaluate("document.querySelector('#main').scrollTop = 0")
    check(phone, "chat")
    page.evaluate("document.querySelector('#main').scrollTop = 1e6")
    check(phone, "chat-end")
    page.locator(".turn.user .text").last.click()
    page.locator(".turn.user .actions button").first.click()
    check(phone, "edit")
    page.keyboard.press("Escape")
    page.locator(".turn .picture").first.click()
    phone.until("document.querySelector('#viewer-picture').naturalWidth > 0")
    page.click("#viewer-in")
    check(phone, "viewer")
    page.click("#viewer-close")
    for _ in range(3):
        phone.offer(PICTURE)
    phone.until("document.querySelectorAll('.offered button').length === 3")
    check(phone, "shared")
    page.locator(".offered button").last.click()
    phone.until("!document.querySelector('#attached').hidden")
    wait = tmp_path / "app" / "files" / "bundle" / "wait"
    wait.touch()  # the engine stops halfway through the picture
    phone.ask("What is this?")
    phone.until("document.querySelectorAll('.slices .done').length === 2")
    phone.until("document.querySelector('.slices').clientWidth > 100")
    check(phone, "slices")
    page.click("#stop")
    phone.until("document.querySelector('#stop').hidden")
    wait.unlink()
    phone.ask("signal 9")
    phone.until(
        "!document.querySelector('#alert').hidden && document.querySelector('#stop').hidden"
    )
    check(phone, "error")


def test_panels(open_app: Callable[..., Phone], check: Callable[[Phone, str], None]) -> None:
    phone = open_app()
    page = phone.page
    page.click("#open-settings")
    check(phone, "settings")
    page.click("#advanced summary")
    page.locator("#advanced").scroll_into_view_if_needed()
    check(phone, "advanced")
    for panel, done in PANELS:
        if not page.is_visible("#settings"):
            page.click("#open-settings")
        page.locator(f"#open-{panel}").click()
        if panel == "api":
            page.click("#api-on")
        elif panel != "about":
            page.click(f"#{panel}Run")
        phone.until(f"document.querySelector('#{panel} {done}') !== null")
        if panel in ("check", "bench"):
            phone.until(f"document.querySelector('#{panel}Run:enabled') !== null")
        check(phone, panel)
        page.click(f"#{panel} .close")


def _write_chats(files: Path, language: str) -> None:
    """Writes what an app of some days ago would have kept."""
    (files / "chats").mkdir(parents=True, exist_ok=True)
    (files / "pictures").mkdir(exist_ok=True)
    shutil.copy(PICTURE, files / "pictures" / _PICTURE_ID)
    with Image.open(PICTURE) as picture:
        picture.convert("RGB").save(files / "pictures" / f"{_PICTURE_ID}.jpg")
    now = int(time.time() * 1000)
    for number, (question, answer) in enumerate(_CHATS[language]):
        turns = [{"role": "user", "text": question, "picture": _PICTURE_ID}]
        turns += [{"role": "assistant", "text": answer, "stop": "eos"}]
        if number == 0:
            later, longer = _CHATS[language][1]
            turns += [{"role": "user", "text": later}, {"role": "assistant", "text": longer}]
        else:
            del turns[0]["picture"]
        name = f"5d1fbb9e-6f5c-4c39-8a51-0f3b6d1f0c2{number}"
        chat = {"changed": now - number * 100_000_000, "turns": turns}
        (files / "chats" / f"{name}.json").write_text(json.dumps(chat), "utf-8")
