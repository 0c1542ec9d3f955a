"""Finds and reads a benchmark's files, ignoring the case of their names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from convert.support.regular_file import read_regular
from runtime.eval.items import EvalDataError


def read_file(path: Path) -> bytes:
    """Returns a file's content.

    Raises:
        EvalDataError: it is not a regular file, or cannot be read.
    """
    try:
        return read_regular(path)
    except OSError as error:
        raise EvalDataError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_text(path: Path) -> str:
    """Returns a text file's content in UTF-8, without a byte-order mark.

    Raises:
        EvalDataError: it is not a regular file, or not UTF-8.
    """
    try:
        return read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise EvalDataError(f"{path}: cannot be read: {error}") from error


def files_with(paths: Iterable[Path], suffixes: tuple[str, ...]) -> list[Path]:
    """Returns the files that end in one of the suffixes, in any case, sorted by name.

    Names that begin with a dot are skipped: macOS leaves `._1.jpg` beside `1.jpg`.
    """
    return sorted(
        path
        for path in paths
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    )


def child(folder: Path, name: str) -> Path:
    """Returns the path of a folder's entry: the exact name, else one that differs in case only.

    If there is neither, returns the path with the exact name.
    """
    path = folder / name
    if path.exists() or not folder.is_dir():
        return path
    alike = (one for one in folder.iterdir() if one.name.lower() == name.lower())
    return min(alike, default=path)
