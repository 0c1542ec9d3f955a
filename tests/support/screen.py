"""The page in headless Chromium, with any host behind it: what tests do with it and check.

Screenshots are saved in the folder `MINICPMV_SCREENSHOTS`, or in pytest's temporary folder.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Page

PICTURE = Path(__file__).resolve().parents[2] / "configs" / "demo" / "sample.png"
AT_END = (  # the chat is scrolled to its end
    "(() => { const m = document.querySelector('#main');"
    " return m.scrollHeight - m.scrollTop - m.clientHeight < 2; })()"
)
GROUNDED = "<ref>cat</ref><box>1 2 3 4</box><img src=x onerror=document.title='hacked'>&lt;b&gt;"
SIZES = {"small": (320, 568), "phone": (360, 720), "wide": (900, 700), "tablet": (1280, 800)}
_PLACE = (
    "[document.querySelector('#main').scrollTop, document.querySelector('#main').scrollHeight,"
    " getSelection().toString()]"
)


class Screen:
    """A page and the errors that it logged."""

    def __init__(self, page: Page) -> None:
        self.page = page
        page.set_default_timeout(120_000)  # milliseconds, on a busy machine
        self.errors: list[str] = []
        self._place: list[Any] = []  # of reading: scroll offset and height, selected text
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)

    def pump(self) -> None:
        """Delivers the host's events to the page, for hosts that do not do it themselves."""

    def until(self, expression: str, seconds: float = 60) -> None:
        """Waits until a JavaScript expression is true."""
        for _ in range(int(seconds * 20)):
            self.pump()
            if self.page.evaluate(expression):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"never: {expression}")

    def ready(self) -> None:
        """Waits until the page takes a question."""
        self.until(
            "document.querySelector('#start.empty') && document.querySelector('#progress').hidden"
        )

    def ask(self, text: str) -> None:
        self.page.fill("#question", text)
        self.page.click("#send")

    def answered(self, count: int) -> None:
        """Waits until there are this many answers, all of them whole."""
        whole = "document.querySelectorAll('.turn.assistant .text:not(.waiting)').length"
        self.until(f"{whole} === {count} && document.querySelector('#stop').hidden")

    def act(self, role: str, action: str) -> None:
        """Taps on the last question or answer, and on what can be done with it."""
        turn = self.page.locator(f".turn.{role}").last
        if not turn.locator(".actions").count():
            turn.locator(".text").click()
        turn.get_by_role("button", name=action, exact=True).click()

    def open_chat(self) -> None:
        """Opens the latest chat of the history."""
        self.page.click("#open-history")
        self.page.click(".chats .open")

    def delete_chat(self) -> None:
        """Deletes the latest chat of the history, which is open."""
        count = self.page.locator(".chats .open").count()
        self.page.click(".chats .icon")
        self.page.click("text=Delete")
        self.page.click("text=Delete permanently?")
        self.until(f"document.querySelectorAll('.chats .open').length === {count - 1}")

    def run_check(self) -> None:
        """Runs the self-check, which passes."""
        self.page.click("#open-settings")
        self.page.click("text=Self-check")
        self.page.click("text=Run the check")
        self.until("document.body.innerText.includes('All checks passed.')")

    def show_speed(self) -> None:
        """Switches the speed figures on."""
        self.page.click("#open-settings")
        self.page.click("#advanced summary")
        self.page.check("#set-show_speed")
        self.page.keyboard.press("Escape")

    def searches_and_renames(self) -> None:
        """Finds one of two chats by a word of its answer, and gives it a title."""
        for text in ("apples", "pears"):
            self.page.click("#new-chat")
            self.until("document.querySelectorAll('.turn').length === 0")
            self.ask(text)
            self.answered(1)
        self.page.click("#open-history")
        assert self.page.locator(".chats .open").count() == 2
        self.page.fill("#search", "1: APPLES")
        self.until("document.querySelectorAll('.chats .open').length === 1")
        self.page.click(".chats .icon")
        self.page.click("text=Rename")
        self.page.keyboard.type("Fruit")
        self.page.keyboard.press("Enter")
        self.until("document.querySelector('.chats .open').innerText.includes('Fruit')")
        self.page.click(".chats .open")
        self.until("document.querySelector('#title').innerText === 'Fruit'")
        assert self.turns() == ["apples", "1: apples"]
        self.page.click("#open-history")
        self.page.fill("#search", "plums")
        self.until("document.querySelector('#history-body').innerText.includes('No chat')")
        self.page.fill("#search", "")
        self.until("document.querySelectorAll('.chats .open').length === 2")
        self.page.keyboard.press("Escape")

    def keeps_a_draft(self, kept: Path) -> None:
        """Reloads the page while a question is being typed. Args: kept: the host's file."""
        self.page.focus("#question")
        self.page.keyboard.type("half a quest")
        for _ in range(600):
            if kept.exists() and "half a quest" in kept.read_text("utf-8"):
                break
            self.pump()
            self.page.wait_for_timeout(50)
        self.page.reload()
        self.until("document.querySelector('#question').value === 'half a quest'")
        self.page.keyboard.press("End")
        self.page.click("#send")
        self.answered(1)
        self.page.reload()
        self.answered(1)
        assert self.page.input_value("#question") == ""

    def chooses_among_pictures(self) -> None:
        """Takes the second of three pictures that came at once, then none."""
        self.until("document.querySelectorAll('.offered button').length === 3")
        self.page.locator(".offered button").nth(1).click()
        self.until("!document.querySelector('#attached').hidden")
        assert self.page.is_hidden("#shared")

    def copies_code(self) -> None:
        """Asks for an answer with code and copies it; it is `a < b`."""
        self.ask("code\n```js\na < b\n```")
        self.answered(1)
        assert self.page.inner_text(".code pre") == "a < b"
        self.page.click(".code button")

    def paste(self, path: Path, way: str = "paste") -> None:
        """Pastes a picture into the page, or drops it there."""
        self.page.evaluate(
            """([way, bytes]) => {
                const data = new DataTransfer();
                data.items.add(new File([new Uint8Array(bytes)], 'a.png'));
                document.body.dispatchEvent(way === 'drop'
                    ? new DragEvent('drop', {dataTransfer: data, bubbles: true})
                    : new ClipboardEvent('paste', {clipboardData: data, bubbles: true}));
            }""",
            [way, list(path.read_bytes())],
        )

    def tap(self, *selectors: str) -> None:
        """Presses buttons without a pointer, which would end a text selection."""
        for selector in selectors:
            self.page.locator(selector).evaluate("e => e.click()")

    def read_in_the_middle(self) -> None:
        """Fills more than a screen with two answers, and selects text in the middle of it."""
        for count in (1, 2):
            self.ask("\n".join(f"line {i}" for i in range(60)))
            self.answered(count)
        self.page.evaluate(
            """() => {
                const text = document.querySelectorAll('.turn .text')[1];
                text.scrollIntoView();
                const range = document.createRange();
                range.selectNodeContents(text.firstChild);
                getSelection().removeAllRanges();
                getSelection().addRange(range);
                window.marked = [...document.querySelectorAll('.turn')];
            }"""
        )
        assert "line 30" in self.page.evaluate("getSelection().toString()")
        self._place = self.page.evaluate(_PLACE)
        assert 0 < self._place[0] < self._place[1] - 1000, "neither the start nor the end"

    def still_reads_there(self) -> None:
        """Checks that nothing was drawn again since `read_in_the_middle`."""
        place = self.page.evaluate(_PLACE)
        assert place == self._place, f"{place} is not {self._place}"
        assert self.page.evaluate(
            "[...document.querySelectorAll('.turn')].every((turn, i) => turn === marked[i])"
        )

    def keeps_the_place(self) -> None:
        """A change of a setting, a job and a panel leave the place of reading as it is."""
        self.read_in_the_middle()
        self.tap("#open-settings")
        self.page.locator("#set-theme").evaluate(
            "e => { e.value = 'dark'; e.dispatchEvent(new Event('change')); }"
        )
        self.until("document.documentElement.dataset.theme === 'dark'")
        self.tap("#settings .close")
        self.still_reads_there()
        self.tap("#open-settings", "#settings-body .buttons button:text('Speed test')", "#benchRun")
        self.until("document.querySelector('#bench dl') !== null")
        self.tap("#bench .close")
        self.still_reads_there()

    def turns(self) -> list[str]:
        texts: list[str] = self.page.eval_on_selector_all(
            ".turn .text", "all => all.map(e => e.innerText)"
        )
        return texts

    def shows_tags_as_text(self) -> None:
        """Checks that tags in a question and its answer are shown as text."""
        self.ask(GROUNDED)
        self.answered(1)
        assert self.turns() == [GROUNDED, f"1: {GROUNDED}"]
        assert self.page.locator(".turn :is(ref, box, img)").count() == 0
        assert "hacked" not in self.page.title()
        self.page.reload()
        self.answered(1)
        self.page.click("#open-history")
        assert GROUNDED[:20] in self.page.inner_text(".chats .open")

    def stop_and_edit(self, text: str) -> None:
        """Stops the first answer and asks something else instead."""
        assert self.page.is_hidden("#send")
        self.page.click("#stop")
        self.answered(1)
        assert self.page.inner_text(".turn:last-child .note") == "Stopped"
        self.act("user", "Edit")
        self.page.fill(".turn form textarea", text)
        self.page.click(".turn form .strong")
        self.until(f"document.body.innerText.includes('1: {text}')")
        self.answered(1)

    def answer_again(self, taps: int = 1) -> None:
        """Has the only answer regenerated and waits for it."""
        # Its words are the earlier one's, and on a busy machine the app may tell the page of both
        # changes of the chat at once, which draws nothing: then the pieces of its text tell it.
        self.page.evaluate(
            "() => { document.querySelector('.turn.assistant').classList.add('earlier');"
            " const give = window.receive; window.pieces = 0; if (!give) { return; }"
            " window.receive = (e) => { window.pieces += e.event === 'text'; give(e); }; }"
        )
        self.page.locator("text=Regenerate").click(click_count=taps)
        self.until("window.pieces > 0 || document.querySelector('.earlier') === null")
        self.answered(1)

    def turn(self) -> None:
        """Rotates the phone: swaps width and height."""
        size = self.page.viewport_size
        assert size is not None
        self.page.set_viewport_size({"width": size["height"], "height": size["width"]})

    def turned_while_it_answers(self) -> None:
        """Asks the stand-in to count, rotates the phone meanwhile, and checks the page.

        Nothing is lost or repeated, the question being typed stays, and the view follows the end of
        the answer unless the user scrolled away from it.
        """
        page = self.page
        self.ask("count")
        counted = "(document.querySelector('.waiting') || {innerText: ''}).innerText"
        self.until(f"{counted}.includes(' 99 ')")  # longer than the screen in landscape
        page.focus("#question")
        page.keyboard.type("the next")
        for _ in range(2):
            self.turn()
            self.until(AT_END)
            assert page.evaluate("document.activeElement.id") == "question"
            assert page.input_value("#question") == "the next"
            assert page.is_visible("#stop")
            assert self.fits()
            shown = page.evaluate(f"{counted}.split(' ').length")
            self.until(f"{counted}.split(' ').length > {shown + 3}")
            self.until(AT_END)
        beyond = "document.querySelector('#main').scrollHeight - innerHeight"
        self.until(f"{beyond} > 100")
        page.evaluate("document.querySelector('#main').scrollTop = 0")
        page.wait_for_timeout(100)
        self.turn()
        shown = page.evaluate(f"{counted}.split(' ').length")
        self.until(f"{counted}.split(' ').length > {shown + 3}")
        assert page.evaluate("document.querySelector('#main').scrollTop") == 0
        page.click("#stop")
        self.answered(1)
        question, answer = self.turns()
        numbers = answer.split()
        assert question == "count"
        assert numbers == [str(i) for i in range(len(numbers))]
        assert len(numbers) > 99
        assert page.input_value("#question") == "the next"
        page.click("#send")
        self.answered(2)
        assert self.turns()[2:] == ["the next", "3: the next"]

    def fits(self) -> bool:
        """Tells whether nothing needs horizontal scrolling."""
        return bool(
            self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
            and self.page.evaluate(
                "[...document.querySelectorAll('button, input, select, textarea')]"
                ".filter(e => e.offsetParent !== null)"
                ".every(e => { const r = e.getBoundingClientRect();"
                " return r.left >= 0 && r.right <= window.innerWidth; })"
            )
        )

    def shoot(self, name: str, folder: Path) -> None:
        folder = Path(os.environ.get("MINICPMV_SCREENSHOTS") or folder / "screenshots")
        self.page.screenshot(path=folder / f"{name}.png")
