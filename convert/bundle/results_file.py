"""Results on disk, one JSON line each, only ever appended, so that a run can resume.

The first line says what was measured, and how. A stored result is reused only for exactly the same
prompt and picture.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.bundle.manifest import MANIFEST, Bundle, FileRecord
from convert.support.closing import Closing
from convert.support.json_text import json_lines, json_text
from convert.support.whole_file import check_replaceable
from quantize.errors import ToolkitError


def identity(bundle: Bundle) -> str:
    """Returns a bundle's identity: the hash of its manifest, which lists all files' hashes."""
    return FileRecord.of(bundle.path / MANIFEST).sha256


class ResultsError(ToolkitError):
    """A results file belongs to another run, is in use, or is damaged."""


class ResultsFile(Closing):
    """The results of one run, continued by later ones if interrupted. A context manager."""

    def __init__(self, path: Path, header: Mapping[str, Any], option: str) -> None:
        """Opens or creates a file.

        Args:
            path: the file.
            header: its format, what is measured, and how.
            option: the command-line option that chooses another path, for error messages.

        Raises:
            ResultsError: it holds the results of another run, or another run is writing it.
            OutputFileError: it is not a regular file.
        """
        self.path, self._option = path, option
        self._found: dict[tuple[str, str], dict[str, Any]] = {}
        check_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ResultsError(
                    f"{path}: another run is writing it; wait until it ends"
                ) from error
            self._read(header)
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Lets another run write the file."""
        self._file.close()

    def get(self, key: str, digest: str) -> dict[str, Any] | None:
        """Returns the stored result of a question."""
        return self._found.get((key, digest))

    def add(self, key: str, digest: str, found: Mapping[str, Any]) -> None:
        """Stores the result of a question; it is on disk when this returns."""
        line = {"key": key, "digest": digest, **found}
        self._write(line)
        self._found[key, digest] = line

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json_text(line).encode() + b"\n")
        self._file.flush()

    def _read(self, header: Mapping[str, Any]) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if not content:
            self._write(header)
            return
        hint = f"name another {self._option}"
        try:
            first, *rest = [json.loads(line) for _, line in json_lines(whole)]
            given = dict(first)
            self._found = {(line["key"], line["digest"]): line for line in rest}
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ResultsError(
                f"{self.path}: not a results file, or damaged: {error}; {hint}"
            ) from error
        if given != json.loads(json.dumps(header)):
            differs = [key for key in header if header[key] != given.get(key)] or list(given)
            raise ResultsError(
                f"{self.path}: holds results of another run: {', '.join(differs)} differ; {hint}, "
                "or remove the file"
            )
        if len(whole) < len(content):  # a run was killed while writing a line
            os.ftruncate(self._file.fileno(), len(whole))
