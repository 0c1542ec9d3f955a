"""The page in a real browser, over the app's own logic in place of a phone."""

from __future__ import annotations

import json
import mimetypes
import queue
import re
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, Route

from android.build.builder import APP, PAGE
from android.build.tools import java
from convert.checkpoint.config import CONFIGS
from convert.support.versions import VERSION
from tests.support.java import lending
from tests.support.screen import Screen

ORIGIN = "https://app.local/"
# Playwright's bridge to this process replaces the object that Android injects into the page.
_BRIDGE = "window.app = {send: (command) => { window.fromPage(command); }};"


class PagePhone(Screen):
    """The logic of an app in its own process, connected to a page."""

    def __init__(self, page: Page, folder: Path, command: Sequence[str]) -> None:
        """Args: page: of the browser. folder: for all that it keeps. command: of the process."""
        super().__init__(page)
        self._folder = folder
        self.asked: list[dict[str, Any]] = []  # the app's requests to the phone
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        self._heard: list[str] = []  # names of the events that the page received
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        page.expose_function("fromPage", self._send)
        page.add_init_script(_BRIDGE)
        page.route(ORIGIN + "**", self._serve)

    def open(self) -> None:
        """Loads the page, as the app does when it starts."""
        self.page.goto(ORIGIN + "index.html")

    def choose(self, path: Path) -> None:
        """Sets the file that the user chooses next."""
        self._send(json.dumps({"host": "choose", "path": str(path)}))

    def offer(self, path: Path) -> None:
        """Shares a picture with the app, one of several at once."""
        self._send(json.dumps({"host": "offer", "path": str(path)}))

    def return_to_app(self) -> None:
        """Makes the app visible again, as when the user returns to it."""
        self._send(json.dumps({"host": "foreground"}))

    def count(self, name: str) -> int:
        """Returns how many events of a name the page has received."""
        return self._heard.count(name)

    def until_heard(self, name: str, count: int) -> None:
        """Waits until the page has received this many events of a name."""
        for _ in range(1200):
            self.pump()
            if self.count(name) >= count:
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"never: {count} events {name}")

    def until_asked(self, request: dict[str, Any]) -> None:
        """Waits until the app has asked the phone for something."""
        for _ in range(1200):
            self.pump()
            if request in self.asked:
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"never: {request}; but {self.asked}")

    def pump(self) -> None:
        """Delivers pending events to the page."""
        events = [self._events.get() for _ in range(self._events.qsize())]
        self.asked += [event for event in events if "host" in event]
        shown = [event for event in events if "host" not in event]
        if shown:
            self._deliver(shown)
            self._heard += [event["event"] for event in shown]

    def close(self) -> None:
        """Ends page and app; the page first, which may still have something to tell the app."""
        self.page.close()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._reader.join()

    def _deliver(self, events: list[dict[str, Any]]) -> None:
        self.page.evaluate("events => events.forEach(e => window.receive(e))", events)

    def _send(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._events.put(json.loads(line))

    def _serve(self, route: Route) -> None:
        """Serves the page as the app does."""
        path = route.request.url[len(ORIGIN) :]
        if path.startswith("picture/"):
            file = self._folder / "files" / "pictures" / (path.removeprefix("picture/") + ".jpg")
            route.fulfill(path=file, content_type="image/jpeg")
        elif path == "notices.txt":
            route.fulfill(body="notices", content_type="text/plain")
        elif (PAGE / path).is_file():
            kind = mimetypes.guess_type(path)[0]
            headers = {
                "Content-Security-Policy": content_policy(),
                "Content-Type": kind or "text/plain",
            }
            route.fulfill(path=PAGE / path, headers=headers)
        else:
            route.fulfill(status=404)


class Phone(PagePhone):
    """The Android app's logic."""

    def __init__(
        self,
        page: Page,
        classpath: str,
        folder: Path,
        bundle: Path,
        engine: Sequence[str],
        *,
        beside: Path,
        language: str = "en",
        dark: bool = False,
        insets: dict[str, int] | None = None,
        api: int | None = None,
    ) -> None:
        """Starts the app.

        Args:
            page: has not loaded anything yet.
            classpath: of the app's logic and its tests.
            folder: for all that the app keeps.
            bundle: is packaged in the app.
            engine: its command line.
            beside: where a PC pushes the weights.
            language: of the phone.
            dark: the phone's theme.
            insets: margins of the page that the system covers.
            api: the app is the variant with a server, on this port; 0: any that is free.
        """
        command = [*java(), "-Djava.awt.headless=true", f"-Dlanguage={language}"]
        command += [f"-Dconfigs={CONFIGS}", *lending()]
        command += [] if insets is None else [f"-Dinsets={json.dumps(insets)}"]
        if api is not None:
            command.append("-Dapi=minicpm-v")
            (folder / "files").mkdir(parents=True, exist_ok=True)
            kept = folder / "files" / "api.json"
            if not kept.exists():
                kept.write_text(json.dumps({"port": api}))
        command += [
            f"-Ddark={str(dark).lower()}",
            f"-Dversion={VERSION}",
            "-cp",
            classpath,
            "org.minicpmv.desktop.FakeHost",
        ]
        command += [str(folder), str(bundle), str(beside), *engine]
        super().__init__(page, folder, command)


def content_policy() -> str:
    """Returns the app's content security policy for the page."""
    source = (APP / "java/org/minicpmv/core/PageFiles.java").read_text("utf-8")
    match = re.search(r'"Content-Security-Policy",((?:[^;"]|"[^"]*")*)\);', source)
    assert match is not None
    return "".join(re.findall(r'"([^"]*)"', match[1]))
