"""Results on disk: one JSON line each, only ever added to, so that a run can go on where it ended.

The first line says what was measured how. A result counts for a question only if it was given to
the very same prompt and picture.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from convert.bundle.manifest import MANIFEST, Bundle, FileRecord
from convert.support.json_text import json_lines, json_text
from convert.support.whole_file import check_replaceable
from quantize.errors import ToolkitError

Self = TypeVar("Self", bound="ResultsFile")


def identity(bundle: Bundle) -> str:
    """Returns what tells bundles apart: the hash of the manifest, which has all files' hashes."""
    return FileRecord.of(bundle.path / MANIFEST).sha256


class ResultsError(ToolkitError):
    """A file of results is another run's, in use, or damaged."""


class ResultsFile:
    """The results of one run, or of several that ended early; a context manager that closes it."""

    def __init__(self, path: Path, header: Mapping[str, Any], option: str) -> None:
        """Opens a file, or makes it.

        Args:
            path: the file.
            header: its format, and what is measured how.
            option: of the command line, that names another place.

        Raises:
            ResultsError: it holds the results of another model, or another run writes it.
            OutputFileError: it is no file.
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
                raise ResultsError(f"{path}: another run writes it; wait for its end") from error
            self._read(header)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def get(self, key: str, digest: str) -> dict[str, Any] | None:
        """Returns what is known of a question."""
        return self._found.get((key, digest))

    def add(self, key: str, digest: str, found: Mapping[str, Any]) -> None:
        """Adds what is known of a question now; it is on disk when this returns."""
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
                f"{self.path}: not a file of results, or damaged: {error}; {hint}"
            ) from error
        if given != json.loads(json.dumps(header)):
            differs = [key for key in header if header[key] != given.get(key)] or list(given)
            raise ResultsError(
                f"{self.path}: holds results of another run: {', '.join(differs)} differ; {hint}, "
                "or remove the file"
            )
        if len(whole) < len(content):  # a run was killed while it wrote a line
            os.ftruncate(self._file.fileno(), len(whole))
