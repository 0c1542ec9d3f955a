"""What the page offers around a chat, with the app's logic and a fake engine."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from convert.bundle.manifest import WEIGHTS
from tests.support.screen import PICTURE

if TYPE_CHECKING:
    from tests.android.phone import Phone

Start = Callable[..., "Phone"]


def test_search_and_titles(start: Start) -> None:
    start().searches_and_renames()


def test_a_draft_outlives_the_page(start: Start, tmp_path: Path) -> None:
    start().keeps_a_draft(tmp_path / "app-0" / "files" / "draft.json")


def test_code_is_copied(start: Start) -> None:
    phone = start()
    phone.copies_code()
    phone.until_asked({"host": "copy", "text": "a < b"})


def test_several_pictures_ask_which(start: Start) -> None:
    phone = start()
    for _ in range(3):
        phone.offer(PICTURE)
    phone.chooses_among_pictures()
    phone.ask("which")
    phone.answered(1)
    assert phone.turns()[1] == "1: which seeing 320x240"
    phone.offer(PICTURE)
    phone.until("document.querySelector('#shared').open")
    phone.page.evaluate("window.receive({event: 'back'})")
    phone.until("!document.querySelector('#shared').open")
    phone.ask("none")
    phone.answered(2)
    phone.page.reload()
    phone.answered(2)
    assert phone.page.is_hidden("#shared")
    assert phone.page.is_hidden("#attached")


def test_a_picture_large_with_zoom(start: Start) -> None:
    phone = start()
    page = phone.page
    phone.choose(PICTURE)
    page.click("#gallery")
    phone.until("!document.querySelector('#attached').hidden")
    phone.ask("what")
    phone.answered(1)
    page.click(".turn .picture")
    width = "document.querySelector('#viewer-picture').getBoundingClientRect().width"
    phone.until(f"{width} === 360")  # the phone's
    assert page.is_disabled("#viewer-out")
    page.click("#viewer-in")
    assert page.evaluate(width) == 540
    page.keyboard.press("-")
    assert page.evaluate(width) == 360
    page.dblclick("#viewer-stage")
    assert page.evaluate(width) == 900
    page.keyboard.press("Escape")
    assert page.is_hidden("#viewer")
    assert page.evaluate("document.activeElement.className") == "picture"


def test_an_example_asks_for_a_picture(start: Start) -> None:
    phone = start()
    phone.choose(PICTURE)
    assert phone.page.locator(".examples button").count() == 4
    phone.page.click("text=What is in this picture?")
    phone.until("!document.querySelector('#attached').hidden")
    assert phone.page.input_value("#question") == "What is in this picture?"
    phone.page.click("#send")
    phone.answered(1)
    assert phone.turns()[1] == "1: What is in this picture? seeing 320x240"


def test_dictation_and_reading_aloud(start: Start) -> None:
    phone = start()
    page = phone.page
    page.fill("#question", "one two")
    page.evaluate("document.querySelector('#question').setSelectionRange(3, 3)")
    page.click("#dictate")
    phone.until("document.querySelector('#question').value === 'one dictated two'")
    page.click("#send")
    phone.answered(1)
    phone.act("assistant", "Read aloud")
    phone.until_asked({"host": "speak", "text": "1: one dictated two"})
    phone.act("assistant", "Stop reading")
    phone.until_asked({"host": "speak"})
    phone.until("document.querySelector('.turn.assistant').innerText.includes('Read aloud')")


def test_a_speed_test_is_shared(start: Start) -> None:
    phone = start()
    page = phone.page
    page.click("#open-settings")
    page.click("#open-bench")
    page.click("#benchRun")
    phone.until("document.querySelector('#bench dl') !== null")
    page.click("text=Share")
    for _ in range(600):
        phone.pump()
        if shared := [event["text"] for event in phone.asked if event["host"] == "share"]:
            break
        page.wait_for_timeout(50)
    assert "MiniCPMV, q4f16_1" in shared[0]
    assert "10.0 tok/s" in shared[0]
    assert "36.5 °C" in shared[0]


def test_a_picture_is_pasted(start: Start) -> None:
    phone = start()
    phone.paste(PICTURE)
    phone.until("!document.querySelector('#attached').hidden")
    assert "320 × 240" in phone.page.inner_text("#attached")


def test_the_chats_stand_beside_the_chat(start: Start) -> None:
    phone = start(size="tablet")
    page = phone.page
    assert page.is_hidden("#open-history")
    for text in ("one", "two"):
        page.click("#new-chat")
        phone.until("document.querySelectorAll('.turn').length === 0")
        phone.ask(text)
        phone.answered(1)
    page.locator("#side .open").last.click()
    phone.until("document.querySelector('.turn .text').innerText === 'one'")
    assert page.locator("#side .open[aria-current]").inner_text().startswith("one")
    phone.turn()  # narrow now, so that the button appears
    page.click("#open-history")
    phone.until("document.querySelectorAll('#history .open').length === 2")


def test_actions_by_keyboard(start: Start) -> None:
    phone = start()
    page = phone.page
    for count in (1, 2):
        phone.ask("words")
        phone.answered(count)
    assert page.locator(".turn > .actions").count() == 1, "below the last turn alone"
    page.locator(".turn > .actions button").first.focus()
    for _ in range(3):
        page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.innerText") == "Edit"
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    assert page.locator(".turn form").count() == 0
    assert page.evaluate("document.activeElement.className") == "more"
    phone.act("user", "Edit")
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    page.keyboard.press("End")
    page.keyboard.type(" changed")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    phone.until("document.querySelector('.turn .text').innerText === 'words changed'")
    phone.answered(1)


@pytest.mark.parametrize("length", ["Short", "Medium"])
def test_the_answer_length(start: Start, length: str) -> None:
    phone = start()
    page = phone.page
    page.click("#open-settings")
    page.select_option("#set-length", label=length)
    tokens = {"Short": "128", "Medium": "512"}[length]
    phone.until(f"document.querySelector('#set-max_new_tokens').value === '{tokens}'")
    page.click("#advanced summary")
    page.fill("#set-max_new_tokens", "77")
    page.press("#set-max_new_tokens", "Tab")
    page.focus("#set-do_sample")
    phone.until("document.querySelector('#set-length').selectedOptions[0].text === '77 tokens'")
    page.click("text=Restore defaults")
    phone.until("document.querySelector('#set-length').value === '1024'")


@pytest.mark.parametrize("language", ["en", "zh-CN"])
def test_weights_are_used_where_they_are_or_copied(
    start: Start, tmp_path: Path, language: str
) -> None:
    """The user chooses; what happened, the panel about the app says."""
    phone = start(weights=False, size="small", language=language)
    page, app = phone.page, tmp_path / "app-0" / "files" / "bundle"
    choices = {
        "en": ("Use a file where it is", "Copy a file into the app", "used where it is"),
        "zh-CN": ("直接使用文件", "复制到应用中", "直接使用文件"),
    }
    keep, copy, used = choices[language]
    lent = tmp_path / "my weights.bin"
    shutil.copy(tmp_path / "bundle" / WEIGHTS, lent)
    phone.choose(lent)
    assert phone.fits()
    assert page.inner_text("#start .strong") == keep
    page.click(f"text={keep}")
    idle = "document.querySelector('#progress').hidden"
    phone.until(f"document.querySelector('#start.empty') !== null && {idle}")  # not still loading
    assert not (app / WEIGHTS).exists()
    about = "document.querySelector('#about-body dl').innerText"
    page.evaluate("window.app.send(JSON.stringify({do: 'hello'}))")
    page.click("#open-settings")
    page.click("#open-about")
    phone.until(f"{about}.includes('{used}') && {about}.includes('my weights.bin')")
    page.evaluate("window.receive({event: 'back'})")
    lent.unlink()
    page.evaluate("window.app.send(JSON.stringify({do: 'settings', settings: {window: 640}}))")
    phone.ask("hello")
    phone.until("document.querySelector('#start.card') !== null")
    assert "my weights.bin" in page.inner_text("#start")
    phone.choose(tmp_path / "bundle" / WEIGHTS)
    page.click(f"text={copy}")
    phone.until(f"document.querySelector('#start.card') === null && {idle}")
    assert (app / WEIGHTS).is_file()
