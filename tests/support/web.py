"""`minicpmv chat --web` as a process, and requests to it that no browser would send."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from convert.support.closing import Closing

ROOT = Path(__file__).resolve().parent.parent.parent
STAND_IN = (sys.executable, "-m", "tests.support.web_stand_in")
_SECONDS = 60


class WebServer(Closing):
    """A server; a context manager that interrupts it."""

    def __init__(
        self,
        command: Sequence[str],
        home: Path,
        log: BinaryIO | None = None,
        *,
        key: str | None = None,
    ) -> None:
        """Starts it.

        Args:
            command: that starts it; it prints its address.
            home: holds chats, pictures and settings.
            log: for output larger than a pipe.
            key: an API key that requests carry.
        """
        self.program, self.key = tuple(command), key
        self.folder = home / "minicpmv" / "web"
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"XDG_DATA_HOME": str(home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if log is None else log,
            text=True,
        )
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        if not self.address:
            raise AssertionError(self._process.communicate()[1])
        parts = urlsplit(self.address)
        assert parts.hostname is not None and parts.port is not None
        self.host, self.port, self.root = parts.hostname, parts.port, parts.path
        self.origin = f"http://{self.host}:{self.port}"

    def close(self) -> None:
        """Interrupts it, unless it has ended."""
        if self._process.poll() is None:
            self.interrupt()
        self._process.communicate()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def children(self) -> list[int]:
        """Process ids of its running children."""
        path = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        tasks = path.parent.parent.glob("*/children")
        return [int(pid) for task in tasks for pid in task.read_text().split()]

    def memory_bytes(self) -> int:
        """Resident memory, bytes."""
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS:"))

    def interrupt(self) -> int:
        """Sends SIGINT, as Ctrl-C does; returns the exit code."""
        self._process.send_signal(signal.SIGINT)
        return self._process.wait(_SECONDS)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str | None] | None = None,
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Sends a request as the page does, secret included; in `headers`, None omits one.

        A path that begins with `/` is taken as it is.
        """
        given: dict[str, str | None] = {"Host": f"{self.host}:{self.port}", "Origin": self.origin}
        given |= {} if body is None else {"Content-Length": str(len(body))}
        given |= {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        given |= {"Content-Type": "application/json"} | dict(headers or {})
        connection = http.client.HTTPConnection(self.host, self.port, timeout=_SECONDS)
        whole = path if path.startswith("/") else self.root + path
        connection.putrequest(method, whole, skip_host=True, skip_accept_encoding=True)
        for name, value in given.items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        result = answer.status, answer.headers, answer.read()
        connection.close()
        return result

    def command(self, **command: Any) -> int:
        """Sends a command of the page; returns the status."""
        return self.request("POST", "command", json.dumps(command).encode())[0]

    def upload(self, content: bytes, *, several: bool = False) -> int:
        """Sends a picture, alone or one of several; returns the status."""
        headers = {"Content-Type": "application/octet-stream"}
        path = "picture?several" if several else "picture"
        return self.request("POST", path, content, headers)[0]

    def listen(self) -> Listening:
        """Opens the event stream."""
        return Listening(self)


class Listening(Closing):
    """A page that only listens to events; a context manager that closes the connection."""

    def __init__(self, server: WebServer) -> None:
        self._connection = http.client.HTTPConnection(server.host, server.port, timeout=_SECONDS)
        self._connection.request("GET", server.root + "events")
        self._answer = self._connection.getresponse()
        assert self._answer.status == 200

    def close(self) -> None:
        """Hangs up."""
        if self._connection.sock is not None:
            self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def all_until(self, name: str, **fields: Any) -> list[dict[str, Any]]:
        """Returns the events up to the first of a name with these fields, which is the last."""
        events: list[dict[str, Any]] = []
        while True:
            events.append(self.next())
            if events[-1]["event"] == name and fields.items() <= events[-1].items():
                return events

    def next(self) -> dict[str, Any]:
        """Returns the next event."""
        for line in self._answer:
            if line.startswith(b"data: "):
                event: dict[str, Any] = json.loads(line[6:])
                return event
        raise AssertionError("the stream ended")

    def until(self, name: str, **fields: Any) -> dict[str, Any]:
        """Returns the first event of a name with these fields."""
        return self.all_until(name, **fields)[-1]

    def until_idle(self) -> dict[str, Any]:
        """Returns the first state in which nothing is under way."""
        while True:
            state = self.until("state")
            if "job" not in state and "answering" not in state:
                return state

    def is_over(self) -> bool:
        """Reads the stream to its end; returns True unless that raises."""
        self._answer.read()
        return True
