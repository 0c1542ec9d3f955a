import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from convert.support.regular_file import (
    NotRegularError,
    open_regular,
    read_regular,
    require_regular,
)
from convert.support.strict_json import load_json, parse_json

READERS: list[Callable[[Path], object]] = [require_regular, open_regular, read_regular, load_json]


def in_time(call: Callable[[], object]) -> BaseException | None:
    """Returns what a call raised; fails where it does not end."""
    raised: list[BaseException | None] = []

    def run() -> None:
        try:
            call()
        except Exception as error:
            raised.append(error)
        else:
            raised.append(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout=60)
    assert raised, "it waits for a file that never ends"
    return raised[0]


def fifo(path: Path) -> None:
    os.mkfifo(path)


def bound_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.path.relpath(path))  # a socket's path has 107 bytes at most


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("make", "what"),
    [
        (fifo, "a named pipe"),
        (Path.mkdir, "a folder"),
        (lambda path: path.symlink_to("/dev/zero"), "a device"),
        (bound_socket, "a socket"),
    ],
)
def test_only_regular_files_are_opened(
    tmp_path: Path, read: Callable[[Path], object], make: Callable[[Path], object], what: str
) -> None:
    make(tmp_path / "x")
    error = in_time(lambda: read(tmp_path / "x"))
    assert isinstance(error, NotRegularError)
    assert error.strerror == f"{what}; expected a regular file"
    assert error.filename == str(tmp_path / "x")


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_names_that_no_file_has(tmp_path: Path, read: Callable[[Path], object], name: str) -> None:
    error = in_time(lambda: read(tmp_path / name))
    assert isinstance(error, NotRegularError) and error.strerror == "no file can have this name"


def test_a_missing_file_stays_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "x")


def test_content_and_links(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("x")
    with open_regular(tmp_path / "link") as file:
        assert file.read() == b"abc"
    assert read_regular(tmp_path / "link", limit=3) == b"abc"
    with pytest.raises(OSError, match="larger than the 2 bytes"):
        read_regular(tmp_path / "x", limit=2)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b"[-Infinity]", "-Infinity is not a JSON number"),
        (b"[1e400]", "the number 1e400 is out of range"),
        (b"[-1.5e999]", "out of range"),
        (b"1" + b"0" * 4999, "a number of 5,000 digits is out of range"),
        (b"1" + b"0" * 400, "a number of 401 digits is out of range"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": "\\ud800"}', "not valid Unicode: a string holds the lone surrogate"),
        (b'[{"a": {"b": 1, "c": 2, "b": 1}}]', "the duplicate key 'b'"),
        (b"\xff", "can't decode"),
        (b"{", "Expecting"),
    ],
)
def test_what_is_no_json(content: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_json(content)


def test_lone_surrogates_pass_where_they_are_reported_later() -> None:
    assert parse_json(b'{"a": "\\ud800"}', lone_surrogates=True) == {"a": "\ud800"}


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(
        b'\xef\xbb\xbf{"a": 1000000000000000019884624838656, "b": 1e-400, "c": "\xe6"}'
    )
    with pytest.raises(ValueError, match="utf-8"):
        load_json(path)
    path.write_bytes(b'\xef\xbb\xbf{"a": 1000000000000000019884624838656, "b": 1e-400}')
    assert load_json(path) == {"a": 10**30 + 19884624838656, "b": 0.0}
    with pytest.raises(OSError, match="larger"):
        load_json(path, limit=10)
