"""The page in headless Chromium, with the app's logic and a fake engine."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from android.build.builder import PAGE
from convert.bundle.manifest import WEIGHTS
from tests.support.screen import PICTURE, SIZES

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from tests.android.phone import Phone

Start = Callable[..., "Phone"]


def test_a_picture_two_turns_and_history(start: Start, tmp_path: Path) -> None:
    phone = start()
    page = phone.page
    phone.show_speed()
    phone.choose(PICTURE)
    page.click("#gallery")
    phone.until("!document.querySelector('#attached').hidden")
    phone.ask("What is this?")
    phone.answered(1)
    assert phone.turns() == ["What is this?", "1: What is this? seeing 320x240"]
    assert page.eval_on_selector(".picture img", "e => e.naturalWidth") == 320
    phone.ask("And now?")
    phone.answered(2)
    assert phone.turns()[2:] == ["And now?", "3: And now? seeing 320x240"]
    assert "10.0 tok/s" in page.inner_text(".speed")
    assert "3: And now?" in page.inner_text("#announce")
    phone.shoot("chat", tmp_path)
    page.reload()
    phone.until("document.querySelectorAll('.speed').length === 2")
    page.click("#new-chat")
    phone.until(
        "document.querySelector('#start.empty') && !document.querySelector('#start').hidden"
    )
    assert phone.turns() == []
    phone.open_chat()
    phone.answered(2)
    page.click("#open-history")
    phone.shoot("history", tmp_path)
    phone.delete_chat()
    page.keyboard.press("Escape")
    phone.until("document.querySelector('.turn') === null")


def test_tags_are_text(start: Start) -> None:
    start().shows_tags_as_text()


def test_a_later_picture_begins_anew(start: Start) -> None:
    phone = start()
    phone.ask("one")
    phone.answered(1)
    phone.choose(PICTURE)
    phone.page.click("#camera")
    phone.until("!document.querySelector('#attached').hidden")
    phone.page.click("#attached button")
    assert phone.page.is_hidden("#attached")
    for count in (2, 3):
        phone.page.click("#camera")
        phone.until("!document.querySelector('#attached').hidden")
        phone.ask("two")
        phone.answered(count)
        assert phone.turns()[-1] == "1: two seeing 320x240"
    assert phone.page.locator(".divider").count() == 1


def test_stop_again_edit_and_copy(start: Start) -> None:
    phone = start()
    phone.ask("slow")
    phone.until("[...document.querySelectorAll('.waiting')].some(e => e.innerText.includes('bla'))")
    phone.stop_and_edit("better")
    assert phone.turns() == ["better", "1: better"]
    phone.answer_again()
    assert phone.turns() == ["better", "1: better"]
    phone.act("assistant", "Copy")
    phone.until_asked({"host": "copy", "text": "1: better"})


def test_an_engine_that_dies_is_told_of(start: Start, tmp_path: Path) -> None:
    phone = start()
    phone.ask("signal 9")
    phone.until("!document.querySelector('#alert').hidden")
    assert "The system stopped the model" in phone.page.inner_text("#alert")
    phone.until("document.querySelector('.note.bad') !== null")
    phone.shoot("died", tmp_path)
    phone.until(
        "document.querySelector('#stop').hidden && document.querySelector('#progress').hidden"
    )
    phone.page.click("#alert button")
    phone.ask("still there")
    phone.answered(2)
    assert phone.turns()[-1] == "3: still there"


@pytest.mark.parametrize("dark", [False, True])
def test_the_first_start(start: Start, tmp_path: Path, dark: bool) -> None:
    phone = start(weights=False, size="small", dark=dark)
    page = phone.page
    assert "minicpmv sideload" in page.inner_text("#start")
    assert page.is_disabled("#send")
    assert phone.fits()
    phone.shoot(f"first-{'dark' if dark else 'light'}", tmp_path)
    other = tmp_path / "other"
    other.write_bytes(b"x")
    phone.choose(other)
    page.click("text=Copy a file into the app")
    phone.until("document.querySelector('#start').innerText.includes('do not belong')")
    phone.choose(tmp_path / "bundle" / WEIGHTS)
    page.click("#start .strong")
    phone.until("document.querySelector('#start.empty') !== null")
    phone.until("document.querySelector('#progress').hidden")
    phone.ask("hello")
    phone.answered(1)


def test_an_import_says_how_long_it_takes_and_what_is_copied(start: Start) -> None:
    phone = start(weights=False)
    page = phone.page
    page.evaluate(
        "() => { const give = window.receive;"
        " window.receive = (e) => { if (e.event === 'state') { window.last = e; } give(e); };"
        " window.app.send(JSON.stringify({do: 'hello'})); }"
    )
    phone.until("window.last && window.last.problem && !window.last.job")
    said = "document.querySelector('#progress span').textContent"
    job = {"kind": "import", "stage": "import", "done": 3 << 30, "total": 4 << 30}
    told = "receive({...last, ...added})"
    page.evaluate(f"added => {told}", {"job": job})
    assert page.evaluate(said) == "Copying the weights 75 %"
    for left, words in ((59.2, "60 s"), (61, "2 min")):
        speed = {"event": "progress", **job, "bytes_s": 30 << 20, "left_s": left}
        page.evaluate("event => receive(event)", speed)
        assert page.evaluate(said) == f"Copying the weights 75 % – 30.0 MiB/s, {words} left"
    bundle = {"job": None, "bundle": {"weights_bytes": 4 << 30, "copied_bytes": 3 << 30}}
    page.evaluate(f"added => {told}", bundle)
    assert "3.0 GiB of 4.0 GiB are copied already. Choose the same" in page.inner_text("#start")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dark", [False, True])
def test_everything_fits(start: Start, tmp_path: Path, size: str, dark: bool) -> None:
    phone = start(size=size, dark=dark, language="zh-CN")
    page = phone.page
    assert page.get_attribute("html", "lang") == "zh-CN"
    assert "请" in page.inner_text("#start") or "图片" in page.inner_text("#start")
    phone.choose(PICTURE)
    page.click("#gallery")
    phone.until("!document.querySelector('#attached').hidden")
    assert phone.fits()
    phone.ask("这张图片里有什么？" + "很长" * 40 + "unbroken" * 12)
    phone.answered(1)
    assert phone.fits()
    theme = "dark" if dark else "light"
    phone.shoot(f"zh-{size}-{theme}", tmp_path)
    for opener, panel in (("#open-settings", "settings"), ("#open-history", "history")):
        if page.is_hidden(opener):
            continue  # the chats stand in the side bar
        page.click(opener)
        assert phone.fits(), panel
        phone.shoot(f"{panel}-{size}-{theme}", tmp_path)
        page.keyboard.press("Escape")
    page.click("#open-settings")
    page.click("text=关于")
    page.click("#about summary")
    phone.until("document.querySelector('#about pre').innerText === 'notices'")
    assert phone.fits()
    phone.page.evaluate("window.receive({event: 'back'})")
    assert not page.evaluate("document.querySelector('#about').open")
    phone.page.evaluate("window.receive({event: 'back'})")
    phone.until_asked({"host": "leave"})


@pytest.mark.parametrize("size", SIZES)
def test_nothing_lies_under_the_systems_bars(start: Start, size: str) -> None:
    width, height = SIZES[size]
    insets = {"top": 31, "right": 17, "bottom": 48, "left": 23}
    page = start(size=size, insets=insets).page
    page.click("#open-settings")
    page.eval_on_selector("#settings", "e => e.scrollTo(0, e.scrollHeight)")
    _fits(page, "#settings .bar > *, #settings-body > :last-child", insets, width, height)
    page.keyboard.press("Escape")
    _fits(page, "header button, main, footer button, #question", insets, width, height)


def _fits(page: Page, selector: str, insets: dict[str, int], width: int, height: int) -> None:
    """Checks that elements, where they are visible, lie within the insets."""
    for element in page.query_selector_all(selector):
        if not element.is_visible():
            continue
        box = element.bounding_box()
        assert box is not None
        assert box["x"] >= insets["left"], element
        assert box["x"] + box["width"] <= width - insets["right"], element
        assert box["y"] >= insets["top"], element
        assert box["y"] + box["height"] <= height - insets["bottom"], element


def test_the_host_knows_whether_back_closes_something(start: Start) -> None:
    phone = start()
    page = phone.page
    wanted: list[bool] = []

    def told() -> list[bool]:
        return [asked["takes"] for asked in phone.asked if asked["host"] == "back"]

    def tells(takes: bool) -> None:
        wanted.append(takes)
        for _ in range(1200):
            phone.pump()
            if len(told()) >= len(wanted):
                break
            page.wait_for_timeout(50)
        assert told() == wanted

    page.click("#open-settings")
    tells(True)
    page.keyboard.press("Escape")
    tells(False)
    page.click("#open-settings")
    tells(True)
    page.evaluate("receive({event: 'back'})")
    tells(False)
    phone.ask("one")
    phone.answered(1)
    page.click(".turn.user .text")  # shows what can be done with it
    tells(True)
    page.evaluate("receive({event: 'back'})")
    tells(False)
    assert {"host": "leave"} not in phone.asked


def test_settings_and_self_check(start: Start) -> None:
    phone = start()
    page = phone.page
    page.click("#open-settings")
    page.click("#advanced summary")
    page.fill("#set-window", "256")
    page.press("#set-window", "Tab")
    page.fill("#set-top_p", "7")
    page.press("#set-top_p", "Tab")
    assert page.input_value("#set-top_p") == "0.8"  # 7 is out of range
    page.select_option("#set-language", "zh")
    phone.until("document.documentElement.lang === 'zh-CN'")
    page.select_option("#set-language", "en")
    phone.until("document.documentElement.lang === 'en'")
    assert page.input_value("#set-window") == "256"
    page.click("text=Restore defaults")
    phone.until("document.querySelector('#set-window').value === '1024'")
    page.keyboard.press("Escape")
    phone.run_check()
    assert page.locator(".results .failed").count() == 0


def test_keyboard_and_names(start: Start) -> None:
    phone = start()
    page = phone.page
    nameless = page.eval_on_selector_all(
        "button, input, select, textarea",
        "all => all.filter(e => e.offsetParent !== null && !e.innerText.trim()"
        " && !e.getAttribute('aria-label') && !(e.labels && e.labels.length)).length",
    )
    assert nameless == 0
    page.focus("#question")
    page.keyboard.type("by hand")
    page.keyboard.press("Enter")
    phone.answered(1)
    assert phone.turns() == ["by hand", "1: by hand"]
    page.focus("#open-settings")
    page.keyboard.press("Enter")
    assert page.evaluate("document.querySelector('#settings').contains(document.activeElement)")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "open-settings"


def test_texts_are_the_same_in_both_languages(start: Start) -> None:
    phone = start()
    tables = phone.page.evaluate("import('./texts.js').then((m) => m.TABLES)")
    assert tables["en"].keys() == tables["zh"].keys()
    for name, text in tables["en"].items():
        filled = sorted(re.findall(r"\{\w+\}", text))
        assert filled == sorted(re.findall(r"\{\w+\}", tables["zh"][name])), name
    source = "".join(path.read_text("utf-8") for path in PAGE.glob("*.js"))
    for name in re.findall(r"say\('(\w+)'[,)]", source):
        assert name in tables["en"], name
    java = (PAGE.parent / "app/java/org/minicpmv/core/EngineException.java").read_text("utf-8")
    for code in set(re.findall(r'= "(\w+)";', java)) - {"cancelled"}:
        assert f"error_{code}" in tables["en"], code


def test_no_piece_of_an_answer_is_shown_twice(start: Start) -> None:
    phone = start()
    phone.ask("count")
    counted = "(document.querySelector('.waiting') || {innerText: ''}).innerText.includes(' 3 ')"
    for _ in range(3):
        phone.until(counted)
        phone.page.reload()
    phone.until(counted)
    phone.page.click("#stop")
    phone.answered(1)
    numbers = phone.turns()[-1].split()
    assert numbers == [str(i) for i in range(len(numbers))]
    assert len(numbers) > 3
    chat = {"id": "x", "turns": [{"role": "user", "text": "?"}]}
    events: list[dict[str, Any]] = [{"event": "chat", "chat": chat, "partial": "one t"}]
    for at, text in ((0, "one "), (4, "two "), (8, "three"), (8, "three")):
        events.append({"event": "text", "chat": "x", "at": at, "text": text})
    phone.page.evaluate("events => events.forEach((e) => window.receive(e))", events)
    phone.until("document.querySelector('.waiting').innerText === 'one two three'")
    missing = {"event": "text", "chat": "x", "at": 99, "text": "more"}
    phone.page.evaluate("e => window.receive(e)", missing)
    phone.until("document.querySelector('.waiting') === null")  # the host sent its own state


def test_the_screen_is_turned_while_it_answers(start: Start) -> None:
    start(size="small").turned_while_it_answers()


def test_the_place_of_reading_stays(start: Start) -> None:
    phone = start()
    phone.keeps_the_place()
    phone.tap("#open-settings", "#settings-body .buttons button:text('Self-check')", "#checkRun")
    phone.until("document.querySelector('#check .results') !== null")
    phone.tap("#check .close")
    phone.still_reads_there()
    states = phone.count("state")
    phone.return_to_app()
    phone.until_heard("state", states + 1)
    phone.still_reads_there()


def test_pictures_upright_and_refused(start: Start, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    Image.new("RGB", (60, 40), "blue").save(tmp_path / "turned.png", exif=exif)
    Image.new("RGB", (60, 40), "blue").save(tmp_path / "moving.gif")
    (tmp_path / "new.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 99)
    phone = start()
    phone.choose(tmp_path / "turned.png")
    phone.page.click("#gallery")
    phone.until("!document.querySelector('#attached').hidden")
    assert "40 × 60" in phone.page.inner_text("#attached")
    phone.ask("first")
    phone.answered(1)
    assert phone.turns()[1] == "1: first seeing 40x60"
    assert phone.page.eval_on_selector(".picture img", "e => e.naturalHeight") == 60
    for name, said in (("moving.gif", "GIF pictures are not supported"), ("new.heic", "HEIC")):
        phone.choose(tmp_path / name)
        phone.page.click("#gallery")
        phone.until(f"document.querySelector('#alert').innerText.includes('{said}')")
        assert phone.page.is_hidden("#attached")
        phone.page.click("#alert button")


@pytest.mark.slow
def test_the_demo_answers(
    browser: Browser, java_classpath: str, demo: Path, tmp_path: Path
) -> None:
    """The same page and logic with the real engine, which really sees the picture."""
    from convert.bundle.manifest import Bundle
    from convert.bundle.targets import HOST
    from tests.android.phone import Phone

    bundle = Bundle.open(demo)
    phone = Phone(
        browser.new_page(),
        java_classpath,
        tmp_path / "app",
        bundle.path,
        [str(bundle.program(HOST).path)],
        beside=bundle.path / WEIGHTS,
    )
    phone.open()
    phone.until("document.querySelector('#start.empty')")
    phone.choose(PICTURE)
    phone.page.click("#gallery")
    phone.until("!document.querySelector('#attached').hidden")
    phone.ask("What colour is the shape?")
    phone.answered(1)
    phone.ask("这个图形是什么颜色？")
    phone.answered(2)
    phone.shoot("demo", tmp_path)
    assert phone.turns()[1] == "Red."
    assert "红" in phone.turns()[3]
    phone.run_check()
    phone.shoot("demo-check", tmp_path)
    phone.close()
    assert phone.errors == []
