"""Processes that run an engine of the library for each connection."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path
from typing import Any

from runtime.engine_client.protocol import Event, Field
from tests.engine.libraries import Library
from tests.support.waiting import until

SECONDS = 60


class Connection:
    """An engine in a host's process, at the other end of a socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(SECONDS)
        self.socket.connect(str(path))
        self._lines = self.socket.makefile("rb")

    def receive(self) -> dict[str, Any]:
        """Returns the next event."""
        line: dict[str, Any] = json.loads(self._lines.readline())
        return line

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """Returns the last event of a request."""
        self.send(op, **fields)
        while (line := self.receive())[Field.EVENT] not in (Event.DONE, Event.ERROR):
            pass
        return line

    def send(self, op: str, **fields: Any) -> None:
        self.socket.sendall(json.dumps({Field.OP: op, **fields}).encode() + b"\n")

    def waiting(self) -> int:
        """Returns how many bytes can be received."""
        held = bytearray(4)
        fcntl.ioctl(self.socket, termios.FIONREAD, held)
        return int.from_bytes(held, sys.byteorder)

    def await_full(self) -> None:
        """Waits until the socket takes no more: the engine waits with its events."""
        waiting = [0]

        def is_full() -> bool:
            waiting.append(self.waiting())
            return len(waiting) > 10 and len(set(waiting[-10:])) == 1 and waiting[-1] > 0

        until(is_full)

    def end_input(self) -> bytes:
        """Ends the requests; returns all that the engine still says."""
        self.socket.shutdown(socket.SHUT_WR)
        return self._lines.read()

    def close(self) -> None:
        """Closes both directions."""
        self._lines.close()
        self.socket.close()


class Host:
    """A process that runs an engine for each connection."""

    def __init__(self, library: Library, folder: Path, threads: int) -> None:
        self._path = folder / "socket"
        environment = {**os.environ, "TVM_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            library.command(self._path), stdout=subprocess.PIPE, env=environment
        )
        self._folder = Path(f"/proc/{self._process.pid}")

    def connect(self) -> Connection:
        """Starts an engine."""
        made: list[Connection] = []

        def is_connected() -> bool:
            assert self._process.poll() is None, "the host is gone"
            if self._path.exists():
                with suppress(ConnectionRefusedError):  # bound, but not listening yet
                    made.append(Connection(self._path))
            return bool(made)

        until(is_connected)
        return made[0]

    def result(self) -> int:
        """Waits for the end of an engine; returns what `engine_main` returned."""
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def status(self, name: str) -> str:
        """Returns a line of the process's status."""
        lines = (self._folder / "status").read_text().splitlines()
        return next(line for line in lines if line.startswith(f"{name}:")).split()[1]

    def descriptors(self) -> list[str]:
        """Lists what is open."""
        return sorted(os.listdir(self._folder / "fd"))

    def signals(self, name: str) -> set[int]:
        """Returns the sets of signals that the threads have; 0 has none."""
        return {
            int(line.split()[1], 16)
            for task in (self._folder / "task").iterdir()
            for line in (task / "status").read_text().splitlines()
            if line.startswith(f"{name}:")
        }

    def await_end_of_threads(self) -> None:
        """Waits until only the thread that listens is left: a result is told just before."""
        until(lambda: self.status("Threads") == "1" and len(self.descriptors()) <= 4)

    def await_idle(self) -> None:
        """Waits until the process computes nothing."""
        used: list[bytes] = []

        def is_idle() -> bool:
            status = (self._folder / "stat").read_bytes()
            used.append(b" ".join(status.rpartition(b")")[2].split()[11:13]))
            return len(used) >= 40 and used[-1] == used[-40]

        until(is_idle, "it never waits")

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()
