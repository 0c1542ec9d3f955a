"""The other side of a comparison in a process of its own: lines in, JSON lines out."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from convert.support.closing import Closing
from quantize.errors import ToolkitError


class ChildError(ToolkitError):
    """The process ended before it answered."""


class Child(Closing):
    """A process that answers every request with one line; what it prints else goes to a log."""

    def __init__(self, name: str, command: list[str], cwd: Path) -> None:
        """Args: name: for errors. command: what to run. cwd: where."""
        self._name = name
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            command,
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def close(self) -> None:
        """Kills it."""
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def ask(self, op: str, **fields: int) -> dict[str, Any]:
        """Sends a request and waits for the answer.

        Raises:
            ChildError: the process ended; a signal's name or its log's last line says why.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"op": op, **fields}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # `receive` says why
        return self.receive()

    def receive(self) -> dict[str, Any]:
        """Waits for a line.

        Raises:
            ChildError: see `ask`.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ChildError(f"{self._name} ended: {self._why()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _why(self) -> str:
        code = self._process.wait()
        if code < 0:
            return f"killed by {signal.Signals(-code).name} ({signal.strsignal(-code)})"
        self._log.seek(0)
        return (self._log.read().strip().splitlines() or ["no message"])[-1]
