"""The journal of a conversion: records how much of the weights file is valid, so it can resume."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convert.bundle.manifest import WEIGHTS
from convert.bundle.weights_writer import Mark
from convert.support.json_text import json_lines
from convert.support.regular_file import read_regular
from convert.support.whole_file import whole_file

JOURNAL = "journal.jsonl"
FORMAT, FORMAT_VERSION = "minicpmv-journal", 1
_LIMIT = 16 * 2**20  # bytes; the real model's takes 60 KiB

_LOG = logging.getLogger(__name__)


class Journal:
    """A file beside the weights: first a line on what they depend on, then a line for each mark."""

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        """Reads what an earlier run left in a work folder, and removes all that it does not need.

        Args:
            folder: the unfinished bundle's; empty if there is nothing to resume from.
            about: everything that the weights' bytes depend on, as JSON values.
        """
        self._path = folder / JOURNAL
        self._first = {"format": FORMAT, "format_version": FORMAT_VERSION, "about": dict(about)}
        self.marks: tuple[
            Mark, ...
        ] = ()  # in the order of the file; not yet checked against the weights
        self._added = False
        self.kept_tensors = 0  # that the writer found valid in the weights file
        left = [path for path in folder.iterdir() if path.name not in (JOURNAL, WEIGHTS)]
        if os.path.lexists(self._path):
            self.marks = self._read()
        weights = folder / WEIGHTS
        if not weights.is_file() or weights.is_symlink():
            self.marks = ()
        if not self.marks:
            left = list(folder.iterdir())
        self.nbytes = (
            weights.stat().st_size if self.marks else 0
        )  # bytes written by the earlier run
        for path in left:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def begin(self, kept: Mark | None) -> None:
        """Starts writing, after the last mark whose weights were kept."""
        self.kept_tensors = 0 if kept is None else kept.tensors
        marks = [_line(mark) for mark in self.marks if mark.tensors <= self.kept_tensors]
        with whole_file(self._path) as file:
            file.write_text("".join([json.dumps(self._first) + "\n", *marks]), "utf-8")

    def add(self, mark: Mark) -> None:
        """Records a mark whose bytes have been written."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(mark))
        self._added = True

    def has_marks(self) -> bool:
        """Tells whether a later run could resume from this journal."""
        return bool(self.marks) or self._added

    def remove(self) -> None:
        """Removes the file, which is not part of a finished bundle."""
        self._path.unlink(missing_ok=True)

    def _read(self) -> tuple[Mark, ...]:
        """Returns the marks up to the first bad line; none if they belong to another conversion."""
        try:
            if self._path.is_symlink():
                raise ValueError("not a journal of ours")
            content = read_regular(self._path, _LIMIT)
            first, *lines = [line for _, line in json_lines(content)]
            found = json.loads(first)
        except (OSError, ValueError, RecursionError):
            _LOG.warning("%s: damaged; starting from the beginning", self._path)
            return ()
        if found != self._first:
            changed = _difference(found, self._first)
            _LOG.warning(
                "%s: of another conversion (%s); starting from the beginning", self._path, changed
            )
            return ()
        return _marks(lines)


def _line(mark: Mark) -> str:
    return json.dumps({"tensors": mark.tensors, "sha256": mark.sha256}) + "\n"


def _marks(lines: Sequence[bytes]) -> tuple[Mark, ...]:
    """Reads marks up to the first invalid line, which an interrupted run may leave."""
    marks: list[Mark] = []
    for line in lines:
        try:
            raw = json.loads(line)
            mark = Mark(raw["tensors"], raw["sha256"])
        except (ValueError, KeyError, TypeError, RecursionError):
            break
        last = marks[-1].tensors if marks else 0
        right = type(mark.tensors) is int and mark.tensors > last and isinstance(mark.sha256, str)
        if not right or not re.fullmatch("[0-9a-f]{64}", mark.sha256):
            break
        marks.append(mark)
    return tuple(marks)


def _difference(found: Any, expected: Mapping[str, Any]) -> str:
    """Names what differs."""
    about = found.get("about") if isinstance(found, dict) else None
    if not isinstance(about, dict):
        return "damaged"
    names = [name for name, value in expected["about"].items() if about.get(name) != value]
    return f"another {', '.join(names)}" if names else "another version"
