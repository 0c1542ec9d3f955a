"""Files that appear whole: what they replace, and what they never replace."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from convert.support.whole_file import OutputFileError, check_replaceable, whole_file


def write(path: Path, text: str = "new") -> None:
    with whole_file(path) as file:
        file.write_text(text)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / ("名" * 80)  # 240 bytes: a longer name beside it would be refused
    with whole_file(path) as file:
        file.write_text("new")
        assert not path.exists() and file.parent == tmp_path
    assert path.read_text() == "new"

    class Stop(Exception):
        """What ends the block."""

    with pytest.raises(Stop), whole_file(path) as file:
        file.write_text("half")
        raise Stop
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == [path.name]


def test_permissions_and_links_stay(tmp_path: Path) -> None:
    file, link = tmp_path / "deep" / "file", tmp_path / "link"
    file.parent.mkdir()
    file.write_text("old")
    file.chmod(0o604)
    link.symlink_to(Path("deep") / "file")
    write(link)
    assert link.is_symlink() and file.read_text() == "new"
    assert stat.S_IMODE(file.stat().st_mode) == 0o604
    if os.geteuid() == 0:
        os.chown(file, 12, 34)
        write(file)
        assert (file.stat().st_uid, file.stat().st_gid) == (12, 34)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["deep", "file", "link"]


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "nowhere", "device", "loop"])
def test_what_is_no_file_is_never_replaced(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's name is short
    path = Path(kind)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"nowhere": "missing", "device": "/dev/null", "loop": "loop"}[kind])
    before = path.lstat()
    with pytest.raises((OutputFileError, OSError), match=kind):
        write(path)
    after = path.lstat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert os.listdir() == [kind]


def test_what_takes_the_place_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(OutputFileError, match="a named pipe"), whole_file(path) as file:
        file.write_text("new")
        os.mkfifo(path)
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/dev/null", "a device; expected a regular file"),
        ("/dev/stdout", "/dev/stdout: "),
        ("a\0b", "no file can have this name"),
        ("\ud800", "no file can have this name"),
    ],
)
def test_what_is_wrong_is_said(path: str, problem: str) -> None:
    read, written = os.pipe()
    kept = os.dup(1)
    os.dup2(written, 1)
    try:
        with pytest.raises(OutputFileError, match=problem):
            check_replaceable(Path(path))
    finally:
        os.dup2(kept, 1)
        for descriptor in (read, written, kept):
            os.close(descriptor)
