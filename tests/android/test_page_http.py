"""The page in headless Chromium over HTTP: `minicpmv chat --web`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from tests.support.screen import AT_END, PICTURE, SIZES, Screen
from tests.support.web import STAND_IN, WebServer

if TYPE_CHECKING:
    from playwright.sync_api import Browser

Show = Callable[..., Screen]


@pytest.fixture
def show(browser: Browser) -> Iterator[Show]:
    """Opens the page of a server."""
    screens: list[Screen] = []

    def begin(server: WebServer, *, size: str = "phone", **options: Any) -> Screen:
        width, height = SIZES[size]
        viewport = {"width": width, "height": height}
        context = browser.new_context(viewport=viewport, **options)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        screens.append(Screen(context.new_page()))
        screens[-1].page.goto(server.address)
        return screens[-1]

    yield begin
    for screen in screens:
        screen.page.context.close()
        # The server stops before its page, which then fails to reconnect.
        assert [error for error in screen.errors if "net::ERR_" not in error] == []


def choose(screen: Screen, path: Path) -> None:
    with screen.page.expect_file_chooser() as chooser:
        screen.page.click("#gallery")
    chooser.value.set_files(path)


def attach(screen: Screen, path: Path) -> None:
    choose(screen, path)
    screen.until("!document.querySelector('#attached').hidden")


def count_shown(screen: Screen, beyond: int) -> None:
    """Waits until an answer counts beyond a number."""
    screen.until(
        "Number((document.querySelector('.waiting') || {innerText: ''})"
        f".innerText.trim().split(' ').pop()) > {beyond}"
    )


def test_the_demo(demo: Path, show: Show, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "convert.cli", "chat", str(demo), "--web", "--no-open"]
    with WebServer([*command, "--greedy"], tmp_path) as server:
        screen = show(server, locale="en-GB")
        page = screen.page
        screen.ready()
        assert page.is_hidden("#camera")
        screen.show_speed()
        attach(screen, PICTURE)
        screen.ask("What colour is the shape?")
        screen.answered(1)
        screen.ask("What shape is it?")
        screen.answered(2)
        assert screen.turns()[1::2] == ["Red.", "A star."]
        assert page.eval_on_selector(".picture img", "e => e.naturalWidth") == 320
        assert "cached" in page.locator(".speed").nth(1).inner_text()
        screen.shoot("web-demo", tmp_path)
        screen.run_check()
        screen.shoot("web-check", tmp_path)
        page.keyboard.press("Escape")
        page.reload()
        screen.answered(2)
        (engine,) = server.children
        os.kill(engine, signal.SIGKILL)
        screen.ask("Still there?")  # an idle engine is replaced silently
        screen.answered(3)
        assert not page.inner_text("#alert")
        (engine,) = server.children
        assert server.interrupt() == 0
        with pytest.raises(ProcessLookupError):
            os.kill(engine, 0)
    with WebServer([*command, "--image", str(PICTURE)], tmp_path) as server:
        screen = show(server, size="small", locale="zh-CN", color_scheme="dark")
        page = screen.page
        screen.until("!document.querySelector('#attached').hidden")  # of the command line
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
        screen.open_chat()
        screen.answered(3)
        page.click("#new-chat")
        screen.until("document.querySelectorAll('.turn').length === 0")
        screen.ask("这个图形是什么颜色？")
        screen.answered(1)
        assert "红" in screen.turns()[1]
        assert screen.fits()
        screen.shoot("web-demo-zh-dark", tmp_path)


def test_tags_are_text(show: Show, tmp_path: Path) -> None:
    with WebServer(STAND_IN, tmp_path) as server:
        screen = show(server)
        screen.ready()
        screen.shows_tags_as_text()


def test_stream_stop_edit_and_copy(show: Show, tmp_path: Path) -> None:
    with WebServer(STAND_IN, tmp_path) as server:
        screen = show(server)
        page = screen.page
        screen.ready()
        screen.ask("count")
        count_shown(screen, 2)
        screen.stop_and_edit("better")
        screen.answer_again()
        assert screen.turns() == ["better", "1: better"]
        screen.act("assistant", "Copy")
        screen.until("navigator.clipboard.readText().then((text) => text === '1: better')")
        with page.expect_download() as download:
            page.click("#open-settings")
            page.click("text=Save the log")
        log = download.value.path().read_text()
        assert "about: " in log
        assert "better" not in log


def test_a_reloaded_page_shows_nothing_twice(show: Show, tmp_path: Path) -> None:
    with WebServer(STAND_IN, tmp_path) as server:
        screen = show(server)
        screen.ready()
        screen.ask("count")
        for beyond in (3, 12, 20):
            count_shown(screen, beyond)
            screen.page.reload()
        other = show(server)  # a second tab shows the same
        count_shown(other, 30)
        other.page.click("#stop")
        for one in (screen, other):
            one.answered(1)
            numbers = one.turns()[-1].split()
            assert numbers == [str(i) for i in range(len(numbers))]
            assert len(numbers) > 30


def test_the_screen_is_turned_while_it_answers(show: Show, tmp_path: Path) -> None:
    with WebServer(STAND_IN, tmp_path) as server:
        screen = show(server, size="small")
        screen.ready()
        screen.turned_while_it_answers()


def test_the_place_of_reading_stays(show: Show, tmp_path: Path) -> None:
    with WebServer(STAND_IN, tmp_path) as server:
        screen = show(server)
        screen.ready()
        screen.keeps_the_place()


def test_double_taps_ask_once(show: Show, tmp_path: Path) -> None:
    with WebServer(STAND_IN, tmp_path) as server:
        screen = show(server, has_touch=True)
        screen.ready()
        screen.page.fill("#question", "once")
        screen.page.evaluate(
            "() => { const b = document.querySelector('#send'); b.click(); b.click(); }"
        )
        screen.answered(1)
        assert screen.turns() == ["once", "1: once"]
        screen.answer_again(taps=2)
        assert screen.turns() == ["once", "1: once"]


def test_pictures_upright_and_refused(show: Show, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    Image.new("RGB", (60, 40), "blue").save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGB", (60, 40), "blue").save(tmp_path / "moving.gif")
    with WebServer(STAND_IN, tmp_path) as server:
        screen = show(server)
        screen.ready()
        attach(screen, tmp_path / "turned.jpg")
        assert "40 × 60" in screen.page.inner_text("#attached")
        screen.ask("first")
        screen.answered(1)
        attach(screen, PICTURE)
        screen.ask("second")
        screen.answered(2)
        assert screen.turns()[1::2] == ["1: first seeing 40x60", "1: second seeing 320x240"]
        assert screen.page.locator(".divider").count() == 1
        choose(screen, tmp_path / "moving.gif")
        screen.until("document.querySelector('#alert').innerText.includes('GIF')")
        assert screen.page.is_hidden("#attached")
        screen.until(AT_END)  # the chat scrolls up to make room for the message
        screen.shoot("web-gif", tmp_path)


def test_the_grid_of_a_picture_being_encoded(show: Show, tmp_path: Path) -> None:
    cells = "[...document.querySelectorAll('.slices > *')].map((e) => e.className).join(' ')"
    with WebServer([*STAND_IN, "--slices"], tmp_path) as server:
        screen = show(server)
        screen.ready()
        attach(screen, PICTURE)
        screen.ask("wait")
        screen.until(f"{cells} === 'done done now next next'")
        assert screen.page.inner_text("#progress span") == "Looking at image 3 of 5"
        screen.page.reload()
        screen.until(f"{cells} === 'done done now next next'")
        screen.page.click("#open-settings")
        screen.page.select_option("#set-max_slices", label="Fast")
        screen.page.keyboard.press("Escape")
        screen.page.click("#stop")
        screen.until("document.querySelector('#stop').hidden")
        assert screen.page.locator(".slices").count() == 0
        screen.ask("now")
        screen.answered(1)
        assert screen.turns()[-1] == "1: now seeing 320x240"


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_pictures_dropped_and_pasted(show: Show, tmp_path: Path, way: str) -> None:
    with WebServer(STAND_IN, tmp_path) as server:
        screen = show(server)
        screen.ready()
        screen.paste(PICTURE, way)
        screen.until("!document.querySelector('#attached').hidden")
        assert "320 × 240" in screen.page.inner_text("#attached")


def test_several_pictures_ask_which(show: Show, tmp_path: Path) -> None:
    with WebServer(STAND_IN, tmp_path) as server:
        screen = show(server)
        screen.ready()
        with screen.page.expect_file_chooser() as chooser:
            screen.page.click("#gallery")
        chooser.value.set_files([PICTURE] * 3)
        screen.chooses_among_pictures()
        screen.ask("which")
        screen.answered(1)
        assert screen.turns()[1] == "1: which seeing 320x240"


def test_search_titles_drafts_and_code(show: Show, tmp_path: Path) -> None:
    with WebServer(STAND_IN, tmp_path) as server:
        screen = show(server)
        screen.ready()
        assert screen.page.is_hidden("#dictate")
        screen.copies_code()
        screen.until("navigator.clipboard.readText().then((text) => text === 'a < b')")
        assert screen.page.locator("text=Read aloud").count() == 0
        screen.page.click("#open-history")
        screen.delete_chat()
        screen.page.keyboard.press("Escape")
        screen.searches_and_renames()
        screen.page.click("#new-chat")
        screen.until("document.querySelectorAll('.turn').length === 0")
        screen.keeps_a_draft(server.folder / "draft.json")


def test_a_dead_engine_and_a_dead_server_are_told_of(show: Show, tmp_path: Path) -> None:
    with WebServer(STAND_IN, tmp_path) as server:
        screen = show(server)
        screen.ready()
        screen.ask("signal 9")
        screen.until("document.querySelector('#alert').innerText.includes('system stopped')")
        assert "signal 9" in screen.page.inner_text("#alert")
        screen.until("document.querySelector('.note.bad') !== null")
        screen.page.click("#alert button")
        screen.until("document.querySelector('#stop').hidden")
        screen.ask("still there")
        screen.answered(2)
        assert screen.turns()[-1] == "3: still there"
        assert server.interrupt() == 0
        screen.until("document.querySelector('#alert').innerText.includes('is not responding')")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_fits(show: Show, tmp_path: Path, size: str, scheme: str) -> None:
    with WebServer(STAND_IN, tmp_path) as server:
        screen = show(server, size=size, color_scheme=scheme, locale="zh-CN")
        page = screen.page
        screen.ready()
        assert page.get_attribute("html", "lang") == "zh-CN"
        assert page.get_attribute("html", "data-theme") == scheme
        attach(screen, PICTURE)
        screen.ask("这张图片里有什么？" + "很长" * 40 + "unbroken" * 12)
        screen.answered(1)
        assert screen.fits()
        screen.shoot(f"web-{size}-{scheme}", tmp_path)
        page.click("#open-settings")
        assert page.locator("#set-threads").count() == 0  # the reference has none
        assert screen.fits()
        screen.shoot(f"web-settings-{size}-{scheme}", tmp_path)
        page.click("text=关于")
        assert str(server.folder) in page.inner_text("#about-body")
        assert page.locator("#about summary").count() == 0
        assert screen.fits()
        screen.shoot(f"web-about-{size}-{scheme}", tmp_path)
