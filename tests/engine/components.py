"""Runs the engine's components as a program that tests can drive."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

Field = bytes | str | int | Path


class ComponentError(Exception):
    """An error reply of the program; the text is `CODE: MESSAGE`."""


class Components:
    """A running `components_main.cc`; a context manager that stops it."""

    def __init__(self, *command: str) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> Components:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate(timeout=60)
        if error is None:
            assert self._process.returncode == 0, "the end of stdin ends the program"

    def call(self, name: str, *fields: Field) -> bytes:
        """Runs one command and returns its reply."""
        parts = [f"{name} {len(fields)}\n".encode()]
        for field in fields:
            data = field if isinstance(field, bytes) else str(field).encode()
            parts += [b"%d\n" % len(data), data]
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(b"".join(parts))
        stdin.flush()
        head = stdout.readline().decode()
        assert head, f"the program ended at {name}"
        outcome, _, size = head.partition(" ")
        reply = stdout.read(int(size))
        if outcome == "error":
            raise ComponentError(reply.decode())
        return reply

    def ints(self, name: str, *fields: Field) -> list[int]:
        """Runs a command that replies with numbers."""
        return [int(word) for word in self.call(name, *fields).split()]

    def texts(self, name: str, *fields: Field) -> list[str]:
        """Runs a command that replies with sized texts."""
        reply, texts = self.call(name, *fields), []
        while reply:
            size, _, reply = reply.partition(b"\n")
            texts.append(reply[: int(size)].decode())  # strict: a split character is an error
            reply = reply[int(size) :]
        return texts


def numbers(values: Sequence[int] | np.ndarray[Any, Any]) -> str:
    """Formats ids for a command."""
    return " ".join(map(str, values))
