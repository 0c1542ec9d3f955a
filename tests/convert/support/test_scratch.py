"""Temporary folders: an error that comes from one says which, and what to do."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from convert.engine.toolchain import BuildError
from convert.support.scratch import ScratchError, scratch_folder
from quantize.errors import ToolkitError

NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
FULL = Path("/dev/full")  # answers as a full disk does


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files are."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def fill(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every disk a full one."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=4096))


def test_a_folder_for_a_while(place: Path) -> None:
    with scratch_folder("work-") as folder:
        assert folder.parent == place and folder.name.startswith("work-")
        (folder / "file").write_bytes(b"x")
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("error", [NO_SPACE, OSError("3 requested and 0 written"), None])
def test_a_full_one_is_named(
    place: Path, monkeypatch: pytest.MonkeyPatch, error: OSError | None
) -> None:
    fill(monkeypatch)
    with pytest.raises(ScratchError, match=r"free some space.* TMPDIR") as caught:
        with scratch_folder() as folder:
            if error is not None:
                raise error
            if not FULL.exists():
                pytest.skip("there is no /dev/full here")
            (folder / "file").symlink_to(FULL)
            np.zeros(9999).tofile(folder / "file")
    assert str(caught.value).startswith(f"{place}: no temporary file can be written: ")
    assert list(place.iterdir()) == []


def test_a_quota_that_is_used_up(place: Path) -> None:
    with pytest.raises(ScratchError, match=f"{place}: .*TMPDIR"), scratch_folder():
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


def test_one_that_cannot_be_made(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(place / "gone"))
    with pytest.raises(ScratchError, match=rf"^{place}/gone: .*No such file.* TMPDIR"):
        with scratch_folder():
            raise AssertionError


def test_no_place_for_any(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(ScratchError, match=r"no folder for temporary files: .*\['/tmp'\].*TMPDIR"):
        with scratch_folder():
            raise AssertionError


def test_one_that_somebody_removes(place: Path) -> None:
    with (
        pytest.raises(ScratchError, match=rf"^{place}: .*No such file"),
        scratch_folder() as folder,
    ):
        folder.rmdir()
        (folder / "file").write_bytes(b"x")


@pytest.mark.parametrize("full", [False, True])
def test_errors_of_elsewhere_stay(place: Path, monkeypatch: pytest.MonkeyPatch, full: bool) -> None:
    if full:
        fill(monkeypatch)
    errors = [FileNotFoundError(errno.ENOENT, "x", "/elsewhere"), OSError(errno.EIO, "x")]
    others = [ToolkitError("of something else"), ValueError("x"), KeyboardInterrupt()]
    for error in (*errors, *others, *([] if full else [NO_SPACE])):
        with pytest.raises(type(error)) as caught, scratch_folder():
            raise error
        assert caught.value is error
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("says", ["a.cc: error: NoSpaceLeft", "{}/output: cannot be written"])
def test_programs_that_find_no_room(
    place: Path, monkeypatch: pytest.MonkeyPatch, says: str
) -> None:
    with pytest.raises(BuildError), scratch_folder() as folder:
        raise BuildError(says.format(folder))
    fill(monkeypatch)
    with pytest.raises(ScratchError, match=rf"^{place}: .*(NoSpaceLeft|output).*TMPDIR"):
        with scratch_folder() as outer, scratch_folder():
            raise BuildError(says.format(outer))


def test_a_folder_elsewhere(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is renamed to its place lies beside it: there TMPDIR does not help."""
    beside = place / "beside"
    with pytest.raises(ScratchError, match=f"^{beside}: cannot be written: No such") as caught:
        with scratch_folder("x", beside):
            raise AssertionError
    beside.mkdir()
    fill(monkeypatch)
    with pytest.raises(ScratchError, match=f"^{beside}: .*No space left.*; free some space$"):
        with scratch_folder("x", beside):
            raise NO_SPACE
    assert "TMPDIR" not in str(caught.value)
    assert list(beside.iterdir()) == []
