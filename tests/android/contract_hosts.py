"""Both hosts of the page as processes that tests talk to: the app's logic, and `chat --web`."""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Protocol

from android.build.tools import java
from convert.bundle.manifest import WEIGHTS
from convert.checkpoint.config import CONFIGS
from convert.support.versions import VERSION
from tests.android.bundle import FAKE_ENGINE, fake_bundle
from tests.support.web import STAND_IN, WebServer

SECONDS = 60.0  # for an event to come


class PageHost(Protocol):
    """A host of the page."""

    def restart(self) -> None:
        """Ends it and starts it again with what it kept."""

    def close(self) -> None:
        """Ends it."""

    def send(self, text: str) -> bool:
        """Sends a command; returns whether it was taken, if the host says so."""

    def choose(self, path: Path) -> None:
        """Chooses a picture, as the user does."""

    def offer(self, path: Path) -> None:
        """Brings one of several pictures that come at once."""

    def receive(self) -> dict[str, Any]:
        """Returns the next event."""


class ProcessHost:
    """A host of the page that reads commands from its input, and writes events."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._start()

    def _start(self) -> None:
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        self.asked: list[dict[str, Any]] = []  # what the app asked the phone to do
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def restart(self) -> None:
        self.close()
        self._start()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(SECONDS)
        self._reader.join()

    def send(self, text: str) -> bool:
        assert self._process.stdin is not None
        self._process.stdin.write(text + "\n")
        self._process.stdin.flush()
        return True

    def choose(self, path: Path) -> None:
        self.send(json.dumps({"host": "choose", "path": str(path)}))
        self.send(json.dumps({"do": "picture", "camera": False}))

    def offer(self, path: Path) -> None:
        self.send(json.dumps({"host": "offer", "path": str(path)}))

    def receive(self) -> dict[str, Any]:
        return self._events.get(timeout=SECONDS)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = json.loads(line)
            if "host" in event:
                self.asked.append(event)
            else:
                self._events.put(event)


class App(ProcessHost):
    """The app: `FakeHost.java` with the fake engine."""

    def __init__(self, classpath: str, folder: Path, *, slices: int | None = None) -> None:
        """Args: classpath: of the app's logic and its tests. folder: for all that it keeps.
        slices: see `fake_bundle`.
        """
        bundle, beside = fake_bundle(folder / "bundle", slices=slices), folder / "weights"
        shutil.copy(bundle / WEIGHTS, beside)
        super().__init__(
            [
                *(*java(), "-Djava.awt.headless=true", f"-Dconfigs={CONFIGS}"),
                *(f"-Dversion={VERSION}", "-cp", classpath, "org.minicpmv.desktop.FakeHost"),
                *(str(folder / "app"), str(bundle), str(beside), sys.executable, str(FAKE_ENGINE)),
            ]
        )


class Web:
    """`chat --web`, with a stand-in for the model."""

    def __init__(self, folder: Path, *options: str) -> None:
        """Args: folder: for all that it keeps. options: of the stand-in."""
        self._folder, self._command = folder, (*STAND_IN, *options)
        self._start()

    def _start(self) -> None:
        self._server = WebServer(self._command, self._folder)
        self._events = self._server.listen()

    def restart(self) -> None:
        self.close()
        self._start()

    def close(self) -> None:
        self._events.close()
        self._server.close()

    def send(self, text: str) -> bool:
        return self._server.request("POST", "command", text.encode())[0] == 204

    def choose(self, path: Path) -> None:
        self._server.upload(path.read_bytes())

    def offer(self, path: Path) -> None:
        self._server.upload(path.read_bytes(), several=True)

    def receive(self) -> dict[str, Any]:
        return self._events.next()
