"""The page with a model that cuts pictures into slices: the grid, the detail, what does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.screen import PICTURE

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from convert.bundle.manifest import Bundle
    from tests.android.phone import Phone

Start = Callable[..., "Phone"]
_CELLS = "[...document.querySelectorAll('.slices > *')].map((e) => e.className)"
_TEXT = "document.querySelector('#progress span').innerText"
_PLACES = """['.turn .picture', '.turn .picture img', '.turn .text', 'footer', '#progress']
    .map((name) => document.querySelector(name).getBoundingClientRect())
    .map((box) => [box.left, box.top, box.width, box.height])"""

_AT_END = """[document.querySelector('main')]
    .every((main) => main.scrollHeight - main.scrollTop - main.clientHeight < 2)"""


def attach(phone: Phone) -> None:
    """Chooses a picture for the next question."""
    phone.choose(PICTURE)
    phone.page.click("#gallery")
    phone.until("!document.querySelector('#attached').hidden")


def choose_detail(phone: Phone, label: str) -> None:
    """Chooses a detail in the settings."""
    phone.page.click("#open-settings")
    phone.page.select_option("#set-max_slices", label=label)
    phone.page.keyboard.press("Escape")


def begin(phone: Phone, folder: Path, detail: str = "Full") -> None:
    """Asks about a picture; the engine waits in the middle of its encoding."""
    choose_detail(phone, detail)
    attach(phone)
    (folder / "app-0" / "files" / "bundle" / "wait").touch()
    phone.ask("what")


def test_the_grid_of_a_picture_being_encoded(start: Start, tmp_path: Path) -> None:
    phone = start(slices=9)
    begin(phone, tmp_path)
    phone.until(f"{_TEXT} === 'Looking at image 6 of 10'")
    assert phone.page.evaluate(_CELLS) == ["done"] * 5 + ["now"] + ["next"] * 4
    columns = "getComputedStyle(document.querySelector('.slices')).gridTemplateColumns"
    assert len(phone.page.evaluate(columns).split()) == 3
    assert phone.page.inner_text("#announce") == (
        "The picture is looked at as a whole, then in parts: 3 across, 3 down. "
        "That makes 10 images."
    )
    name = phone.page.get_attribute("#progress progress", "aria-label")
    assert name == "Looking at image 6 of 10"
    assert phone.page.get_attribute(".slices", "aria-hidden") == "true"
    phone.page.reload()  # a page that comes later
    phone.until(f"{_CELLS}.filter((name) => name === 'done').length === 5")
    phone.page.click("#new-chat")  # another chat has no picture
    phone.until("document.querySelectorAll('.turn').length === 0")
    assert phone.page.locator(".slices").count() == 0
    assert phone.page.evaluate(_TEXT) == "Looking at image 6 of 10"
    phone.open_chat()
    phone.until("document.querySelector('.slices') !== null")
    phone.page.click("#stop")
    phone.until("document.querySelector('#stop').hidden")
    phone.until("document.querySelector('.slices') === null")


@pytest.mark.parametrize(
    ("size", "language", "percent"),
    [("phone", "en", 100), ("phone", "zh-CN", 100), ("phone", "en", 200), ("small", "zh-CN", 200)],
)
def test_nothing_moves_while_a_picture_is_encoded(
    start: Start, tmp_path: Path, size: str, language: str, percent: int
) -> None:
    phone = start(slices=9, size=size, language=language)
    page = phone.page
    page.evaluate(f"document.documentElement.style.fontSize = '{percent}%'")
    begin(phone, tmp_path, "Full" if language == "en" else "完整")
    phone.until(f"{_CELLS}.filter((name) => name === 'done').length === 5")
    phone.until("document.querySelector('.turn .picture img').complete")
    phone.until(_AT_END)
    chat = page.evaluate("import('./chat.js').then((m) => m.shownChat())")
    places: list[Any] = []
    shown: list[str] = []
    for done in range(21):
        event = {"event": "progress", "kind": "answer", "chat": chat, "stage": "encode"}
        event |= {"done": done, "total": 20, "grid": [3, 3]}
        page.evaluate("(event) => window.receive(event)", event)
        places.append(page.evaluate(_PLACES))
        cells = page.evaluate(_CELLS)
        assert cells == ["done"] * (done // 2) + ["now", *["next"] * 9][: 10 - done // 2]
        shown.append(page.evaluate(_TEXT))
    assert places == [places[0]] * len(places)
    if language == "en":
        parts = [f"Looking at image {image} of 10" for image in (1, 6, 10)]
    else:
        parts = [f"正在分析第 {image} 张图，共 10 张" for image in (1, 6, 10)]
    assert shown[::10] == parts
    event |= {"grid": None}
    page.evaluate("(event) => window.receive(event)", event)
    assert page.locator(".slices").count() == 0
    assert page.evaluate(_PLACES)[:3] == places[0][:3]
    phone.page.click("#stop")
    phone.until("document.querySelector('#stop').hidden")


def test_a_picture_that_is_not_cut_has_no_grid(start: Start, tmp_path: Path) -> None:
    phone = start(slices=9)
    begin(phone, tmp_path, "Fast")
    phone.until(f"{_TEXT} === 'Looking at the picture 50 %'")
    assert phone.page.locator(".slices").count() == 0
    phone.page.click("#stop")
    phone.until("document.querySelector('#stop').hidden")


def test_the_detail(start: Start) -> None:
    phone = start(slices=9)
    page = phone.page
    attach(phone)
    phone.ask("what")
    phone.answered(1)
    assert phone.turns()[1] == "1: what seeing 320x240 in 5"
    page.click("#open-settings")
    options = page.locator("#set-max_slices option").all_inner_texts()
    assert options == ["Fast", "Normal", "Full"]
    assert page.inner_text("#set-max_slices-note").startswith("At most 5 of 10 images.")
    page.keyboard.press("Escape")
    for count, label, images in ((2, "Full", " in 10"), (3, "Fast", "")):
        choose_detail(phone, label)
        phone.ask("now")
        phone.answered(count)
        assert phone.turns()[-1] == f"{2 * count - 1}: now seeing 320x240{images}"
    page.reload()
    phone.answered(3)
    page.click("#open-settings")
    assert page.input_value("#set-max_slices") == "1"
    page.evaluate("window.app.send(JSON.stringify({do: 'settings', settings: {max_slices: 6}}))")
    phone.until("document.querySelector('#set-max_slices').value === '6'")
    assert page.locator("#set-max_slices option").all_inner_texts()[2] == "7 images"
    page.click("text=Restore defaults")
    phone.until("document.querySelector('#set-max_slices').value === '4'")


@pytest.mark.parametrize(
    ("most", "values"),
    [(None, []), (1, []), (2, ["1", "2"]), (4, ["1", "4"]), (5, ["1", "4", "5"])],
)
def test_the_detail_that_a_model_has(start: Start, most: int | None, values: list[str]) -> None:
    phone = start(slices=most)
    phone.page.click("#open-settings")
    phone.page.wait_for_selector("#set-length")
    options = phone.page.locator("#set-max_slices option")
    assert [option.get_attribute("value") for option in options.all()] == values


@pytest.mark.parametrize("slices", [None, 9])
def test_a_picture_that_does_not_fit_asks_for_less_detail(start: Start, slices: int | None) -> None:
    phone = start(slices=slices)
    alert = "document.querySelector('#alert span').innerText"
    advice = "Choose less detail of pictures in the settings"
    phone.ask("refuse prompt_too_long")
    phone.until(f"{alert}.includes('refused')")
    assert advice not in phone.page.evaluate(alert)
    phone.page.click("#alert button")
    attach(phone)
    phone.ask("refuse prompt_too_long")
    phone.until(f"{alert}.includes('refused') && !document.querySelector('#alert').hidden")
    assert (advice in phone.page.evaluate(alert)) == (slices is not None)
    if slices is not None:
        choose_detail(phone, "Fast")
        phone.page.click("#alert button")
        phone.ask("refuse prompt_too_long")
        phone.until("!document.querySelector('#alert').hidden")
        assert advice not in phone.page.evaluate(alert)


def test_the_engine_cuts_pictures_as_the_settings_say(
    browser: Browser, java_classpath: str, sliced_bundle: Bundle, tmp_path: Path
) -> None:
    """The same page and logic with a real engine; its model is random."""
    from convert.bundle.manifest import WEIGHTS
    from convert.bundle.targets import HOST
    from tests.android.phone import Phone

    bundle = sliced_bundle.path
    engine, beside = [str(sliced_bundle.program(HOST).path)], bundle / WEIGHTS
    page = browser.new_page()
    phone = Phone(page, java_classpath, tmp_path / "app", bundle, engine, beside=beside)
    phone.open()
    phone.ready()
    page.evaluate(
        """() => {
            const receive = window.receive;
            window.grids = [];
            window.receive = (event) => {
                if (event.event === 'progress' && event.stage === 'encode') {
                    grids.push([event.grid || [], event.total]);
                }
                receive(event);
            };
        }"""
    )
    settings = "window.app.send(JSON.stringify({do: 'settings', settings: %s}))"
    page.evaluate(settings % "{max_new_tokens: 2, window: 128}")
    blocks = None
    for detail, grid in (("Fast", []), ("Normal", [2, 2]), ("Full", [3, 3])):
        choose_detail(phone, detail)
        page.evaluate("window.grids.length = 0")
        attach(phone)
        phone.ask("what is in this picture, what is in this picture")
        phone.until("window.grids.length && document.querySelector('#stop').hidden")
        images = 1 + (grid[0] * grid[1] if grid else 0)
        shown = page.evaluate("window.grids")
        blocks = blocks or shown[0][1]
        assert all(progress == [grid, blocks * images] for progress in shown)
    # 10 images of 9 tokens do not fit beside the question and the tags.
    phone.until("document.querySelector('#alert').innerText.includes('Choose less detail')")
    kept = sorted(path.name[36:] for path in (tmp_path / "app/files/pictures").glob("*.embeddings"))
    assert kept == [".1.embeddings", ".4.embeddings", ".9.embeddings"]
    phone.close()
    assert phone.errors == []
