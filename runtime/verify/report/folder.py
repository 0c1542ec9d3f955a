"""The folder of a report: the page, the same as JSON, and the results of cases to go on from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from convert.bundle.results_file import ResultsFile
from convert.checkpoint.reader import Checkpoint
from convert.support.json_text import json_text
from convert.support.versions import VERSION
from convert.support.whole_file import whole_file
from quantize.errors import ConfigError, ToolkitError
from runtime.verify.measure import results
from runtime.verify.measure.results import FileResultCache, ResultCache
from runtime.verify.report.report import FORMAT

PAGE, DATA, CASES = "index.html", "report.json", "cases.jsonl"
MARK = '<meta name="generator" content="minicpmv verify">'  # by which a page is known as ours
_MARK_WITHIN = 1024  # bytes
_DATA_LIMIT = 1 << 30  # bytes; a larger file is not one of our reports


class ReportError(ToolkitError):
    """A report would replace what is none."""


class ReportFolder:
    """A folder; files in it that are not the report's stay as they are."""

    def __init__(self, path: Path) -> None:
        """Checks, before anything takes long, that a report can be drawn and written there.

        Raises:
            ConfigError: matplotlib is not installed.
            ReportError: something else is there.
        """
        self.path = path.absolute()
        try:
            import matplotlib  # noqa: F401  # only whether it is there
        except ImportError as error:
            raise ConfigError(
                "--report draws with matplotlib; try `pip install matplotlib`"
            ) from error
        self._check()

    def cases(self, about: Mapping[str, Any]) -> ResultsFile:
        """Opens the results of cases.

        Args:
            about: what is measured how.

        Raises:
            ResultsError: they are of another run, or another run writes them.
        """
        header = {"format": results.FORMAT, "version": results.VERSION, **about}
        return ResultsFile(self.path / CASES, header, "--report")

    def write(self, page: str, data: Mapping[str, Any]) -> None:
        """Puts a report in the place of the one before; each file appears whole or not at all."""
        self._check()  # it may have changed meanwhile
        self.path.mkdir(parents=True, exist_ok=True)
        text = json_text(data, indent=1) + "\n"
        for name, content in ((DATA, text), (PAGE, page)):
            with whole_file(self.path / name) as file:
                file.write_text(content, "utf-8", errors="backslashreplace")

    def _check(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise ReportError(f"{self.path}: exists and is no folder; choose another --report")
        there = next(folder for folder in (self.path, *self.path.parents) if folder.exists())
        if not os.access(there, os.W_OK):
            raise ReportError(f"{there}: may not be written to; choose another --report")
        for name, is_ours in ((PAGE, _is_page), (DATA, _is_data)):
            file = self.path / name
            if file.is_symlink() or (file.exists() and not is_ours(file)):
                raise ReportError(
                    f"{file}: not a report of verify; it would be replaced. Move it away, or "
                    "choose another --report"
                )


@contextmanager
def known_results(
    folder: ReportFolder | None,
    about: Mapping[str, Any],
    checkpoint: Checkpoint,
    window: int,
    settings: Mapping[str, Any],
) -> Iterator[ResultCache]:
    """Opens the results of an earlier run; none without a folder.

    Args:
        folder: of the report.
        about: the artifact, and what runs it.
        checkpoint: the reference.
        window: of all models, tokens.
        settings: `configs/verify.json`.
    """
    if folder is None:
        yield ResultCache()
        return
    whole = {
        **about,
        "reference": checkpoint.source_hash(),
        "toolkit": VERSION,
        "window": window,
        "settings": settings,
    }
    with folder.cases(whole) as file:
        yield FileResultCache(file)


def _is_page(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return MARK.encode() in file.read(_MARK_WITHIN)


def _is_data(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size > _DATA_LIMIT:
        return False
    try:
        raw = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(raw, dict) and raw.get("format") == FORMAT
