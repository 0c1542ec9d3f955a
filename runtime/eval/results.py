"""Answers on disk: one JSON line each, only ever added to, so that a run can go on where it ended.

The first line says which model answered how. An answer counts for a question only if it was given
to the very same prompt and picture.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from quantize.errors import ToolkitError
from runtime.eval.items import Item

FORMAT, VERSION = "minicpmv-eval", 1


class ResultsError(ToolkitError):
    """A file of answers is another model's, in use, or damaged."""


class Results:
    """The answers of one model to one benchmark; a context manager that closes the file."""

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        """Opens a file, or makes it.

        Args:
            path: the file.
            about: which model answers how.

        Raises:
            ResultsError: it holds the answers of another model, or another run writes it.
        """
        header = {"format": FORMAT, "version": VERSION, **about}
        self._answers: dict[tuple[str, str], dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ResultsError(f"{path}: another run writes it; wait for its end") from error
            self._read(path, header)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def get(self, item: Item, digest: str) -> dict[str, Any] | None:
        """Returns what is known of a question: its `answer`, or the `problem` with it."""
        return self._answers.get((item.key, digest))

    def add(self, item: Item, digest: str, found: Mapping[str, Any]) -> None:
        """Adds what is known of a question now; it is on disk when this returns."""
        line = {"key": item.key, "digest": digest, **found}
        self._write(line)
        self._answers[item.key, digest] = line

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def _read(self, path: Path, header: Mapping[str, Any]) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if not content:
            self._write(header)
            return
        try:
            first, *rest = [json.loads(line) for line in whole.splitlines()]
            given = dict(first)
            self._answers = {(line["key"], line["digest"]): line for line in rest}
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ResultsError(
                f"{path}: not a file of answers, or damaged: {error}; name another --output"
            ) from error
        if given != json.loads(json.dumps(header)):
            differs = [key for key in header if header[key] != given.get(key)] or list(given)
            raise ResultsError(
                f"{path}: holds answers of another run: {', '.join(differs)} differ; name another "
                "--output, or remove the file"
            )
        if len(whole) < len(content):  # a run was killed while it wrote a line
            os.ftruncate(self._file.fileno(), len(whole))
