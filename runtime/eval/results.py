"""Answers on disk; see `convert.bundle.results_file`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.bundle.results_file import ResultsFile

FORMAT, VERSION = "minicpmv-eval", 1


class Results(ResultsFile):
    """The answers of one model to one benchmark: each an `answer`, or the `problem` with it."""

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        """Args: path: the file. about: which model answers how."""
        super().__init__(path, {"format": FORMAT, "version": VERSION, **about}, "--output")
