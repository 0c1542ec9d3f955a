"""Rows of MMMU and CMMMU: parquet as on the Hugging Face hub, or JSON beside its pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from convert.support.json_text import json_lines
from quantize.errors import ToolkitError
from runtime.eval.files import child, files_with, read_file, read_text
from runtime.eval.items import (
    BadRow,
    EvalDataError,
    EvalItem,
    Questions,
    RowError,
    cell,
    decode_base64,
    unique,
)

_SPLITS = ("validation", "val")  # read if a folder has several
_SUFFIXES = (".parquet", ".jsonl", ".json")
_PICTURES = 8  # columns image_1, …: no row has more

Record = Mapping[str, Any]


def read_records(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, Path, Record]]:
    """Yields rows: a name for people, the file's folder, the fields.

    Args:
        path: a file, or a folder whose files of the validation split are read.
        columns: which must be there.

    Raises:
        EvalDataError: nothing to read, or columns are missing.
    """
    for file in _files(path):
        is_parquet = file.suffix.lower() == ".parquet"
        rows = _parquet(file, columns) if is_parquet else _json(file)
        for number, row in enumerate(rows, 1):
            if not isinstance(row, dict):
                raise EvalDataError(f"{file} row {number}: expected an object of JSON")
            missing = [name for name in columns if name not in row]
            if missing:
                raise EvalDataError(f"{file} row {number}: no {', '.join(missing)}")
            name = file.relative_to(path) if file != path else file.name
            yield f"{name} row {number} (id {row['id']!s:.40})", file.parent, row


def read_questions(
    path: Path,
    columns: tuple[str, ...],
    make: Callable[[Record, str, Path], EvalItem],
    benchmark: str,
) -> Questions:
    """Reads a benchmark's questions; rows that cannot be asked are listed separately.

    Args:
        path: see `read_records`.
        columns: which must be there.
        make: makes a question of a row, its name and the file's folder, or raises RowError.
        benchmark: its figure's name.

    Raises:
        EvalDataError: the files differ from the published format.
    """
    items: list[EvalItem] = []
    bad: list[BadRow] = []
    rows = 0
    for name, folder, row in read_records(path, columns):
        rows += 1
        try:
            if not isinstance(row["id"], (str, int)):
                raise RowError(f"its id is {row['id']!r:.40}; expected a text or a number")
            items.append(make(row, name, folder))
        except RowError as error:
            bad.append(BadRow(name, str(error)))
    return Questions(unique(items, bad), bad, benchmark, rows)


def pictures(row: Record, folder: Path) -> list[bytes | Path]:
    """Returns a row's pictures, in order.

    Raises:
        RowError: there is none, or the first cannot be read.
    """
    names = row.get("img_list")  # CMMMU's own files
    if names is not None:
        values = list(names) if isinstance(names, list) else [names]
    else:
        values = [row.get(f"image_{i}") for i in range(1, _PICTURES)]
    present = [value for value in values if _is_given(value)]
    if not present:
        raise RowError("there is no picture")
    return [_picture(value, folder) for value in present]


def _is_given(value: Any) -> bool:
    """Returns whether a picture column is filled."""
    return bool(cell(value)) if isinstance(value, (str, float)) else value is not None


def _picture(value: Any, folder: Path) -> bytes | Path:
    """Returns a picture that is given as content, or as a file's name."""
    if isinstance(value, dict):
        content = value.get("bytes")
        value = value.get("path") if content is None else content
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and len(value) > 255:  # not a file name
        return decode_base64(value.partition("base64,")[2] or value)
    if not isinstance(value, str) or not value:
        raise RowError(f"a picture is {value!r:.40}; expected its content or a file's name")
    named = folder / value
    try:
        path = child(named.parent, named.name).resolve()
        if path.is_relative_to(folder.resolve()) and path.is_file():
            return path
    except (OSError, ValueError):  # not a valid file name
        pass
    raise RowError(f"the picture {value!r:.80} is not in {folder}")


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = [
        file
        for file in files_with(path.rglob("*"), _SUFFIXES)
        if not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    chosen = [file for file in found if file.name.lower().startswith(_SPLITS)] or found
    if not chosen:
        raise EvalDataError(f"{path}: no {', '.join(_SUFFIXES)} files; expected the benchmark's")
    return chosen


def _parquet(path: Path, columns: tuple[str, ...]) -> Iterator[Record]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ToolkitError(
            f"{path}: parquet files are read with pyarrow; try `pip install pyarrow`"
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            missing = [name for name in columns if name not in file.schema_arrow.names]
            if missing:
                raise EvalDataError(f"{path}: no column {', '.join(missing)}")
            for batch in file.iter_batches(batch_size=16):
                yield from batch.to_pylist()
    except (OSError, ArrowException) as error:
        raise EvalDataError(f"{path}: cannot be read as parquet: {error}") from error


def _json(path: Path) -> list[Any]:
    if path.suffix.lower() == ".json":
        whole: list[Any] = _loads(read_text(path), f"{path}", list)
        return whole
    lines = json_lines(read_file(path))
    return [_loads(line, f"{path} line {number}", dict) for number, line in lines]


def _loads(text: str | bytes, where: str, kind: type[Any]) -> Any:
    try:
        value = json.loads(text if isinstance(text, str) else text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise EvalDataError(f"{where}: no JSON: {error}") from error
    if not isinstance(value, kind):
        raise EvalDataError(f"{where}: expected a JSON {'list' if kind is list else 'object'}")
    return value
