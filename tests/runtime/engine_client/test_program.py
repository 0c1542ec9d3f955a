"""An engine is run only as the file that its bundle's manifest names, by whatever command."""

from __future__ import annotations

import base64
import ctypes
import hashlib
import io
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from convert import cli
from convert.bundle import program
from convert.bundle.errors import BundleError
from convert.bundle.program import Program
from convert.golden import _where_it_may_run
from runtime.engine_client import process as engine_process
from runtime.engine_client.process import EngineDiedError, EngineProcess
from runtime.sessions.chat import ChatModel, OmniLMMChat
from runtime.sessions.loader import load
from tests.support.bundles import write_bundle

HELLO = '{"event": "hello", "protocol": 1}'
LONG_AGO = 10_000_000_000  # ns


def script(path: Path, text: str) -> Program:
    """Writes a program that can be run, and takes it for right."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return Program(path, hashlib.sha256(path.read_bytes()).hexdigest())


def in_time() -> float:
    """Never too late: each call asks for a minute more."""
    return time.monotonic() + 60


def said(command: Program) -> str:
    """Runs a program; returns the word that it says."""
    process = EngineProcess([command], name=None, environment={})
    word: str = process.receive(in_time)["word"]
    process.close()
    return word


def word(text: str) -> str:
    return f"""echo '{{"word": "{text}"}}'"""


@pytest.fixture
def altered(tmp_path: Path) -> tuple[Path, Path]:
    """A bundle whose engine is another program than its manifest says, and the mark of a start."""
    folder, mark = write_bundle(tmp_path / "bundle"), tmp_path / "started"
    path = folder / "engine/host"
    size = path.stat().st_size
    path.write_text(f"#!/bin/sh\ntouch {mark}\necho '{HELLO}'\n")
    path.chmod(0o755)
    manifest = json.loads((folder / "bundle.json").read_text())
    assert size != path.stat().st_size
    manifest["files"]["engine/host"]["size"] = path.stat().st_size  # the hash stays
    (folder / "bundle.json").write_text(json.dumps(manifest))
    return folder, mark


COMMANDS = {
    "chat": ["--prompt", "Who?"],
    "serve": ["--port", "0"],
    "bench": [],
    "verify": [],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_another_program(
    command: str, altered: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, mark = altered
    assert cli.main([command, str(folder), *COMMANDS[command]]) == 2
    told = capsys.readouterr().err
    assert f"BundleError: {folder / 'engine/host'}: altered: its SHA-256 is" in told
    assert "Convert the checkpoint again" in told
    assert not mark.exists(), "it was run"


def test_eval_and_the_api_run_no_other_program(
    altered: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder, mark = altered
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    row = ["1", "What?", "a", "b", "A", base64.b64encode(picture.getvalue()).decode()]
    data = tmp_path / "bench.tsv"
    data.write_text("index\tquestion\tA\tB\tanswer\timage\n" + "\t".join(row) + "\n")
    question = ["eval", str(folder), "--benchmark", "mmbench", "--data", str(data)]
    assert cli.main([*question, "--no-reference"]) == 2
    assert "altered: its SHA-256" in capsys.readouterr().err
    for api in (ChatModel, OmniLMMChat):
        with pytest.raises(BundleError, match="altered: its SHA-256"):
            api(folder)
    assert not mark.exists(), "it was run"


def test_no_session_begins_with_another_program(altered: tuple[Path, Path]) -> None:
    """As `serve` and the web page begin them, again and again while they run."""
    folder, mark = altered
    loaded = load(folder)
    for _ in range(2):
        with pytest.raises(BundleError, match="altered: its SHA-256"):
            loaded.open_session(window=64)
    assert not mark.exists(), "it was run"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what was hashed."""
    found: list[int] = []
    real = program.feed

    def feed(*arguments: Any) -> int:
        found.append(real(*arguments))
        return found[-1]

    monkeypatch.setattr(program, "feed", feed)
    return found


def let_it_settle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes files old enough that their times tell whether they were changed."""
    monkeypatch.setattr(program, "_SETTLED_NS", -LONG_AGO)


def test_a_file_is_hashed_once_until_it_is_touched(
    tmp_path: Path, reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    let_it_settle(monkeypatch)
    one = script(tmp_path / "engine", word("one"))
    assert [said(one), said(one)] == ["one", "one"]
    assert len(reads) == 1
    before = one.path.stat()
    content = one.path.read_bytes()
    time.sleep(0.02)  # more than a tick of the file system's clock
    one.path.write_bytes(content.replace(b"one", b"two"))
    os.utime(one.path, ns=(before.st_atime_ns, before.st_mtime_ns))  # size and date as before
    with pytest.raises(BundleError, match="engine: altered"):
        said(one)
    assert len(reads) == 2
    one.path.write_bytes(content)
    assert said(one) == "one"
    assert len(reads) == 3


def test_a_file_just_written_is_hashed_each_time(tmp_path: Path, reads: list[int]) -> None:
    """Two changes within a tick leave the same times."""
    one = script(tmp_path / "engine", word("one"))
    assert [said(one), said(one)] == ["one", "one"]
    assert len(reads) == 2


def test_the_hash_that_was_asked_for_is_part_of_what_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_it_settle(monkeypatch)
    one = script(tmp_path / "engine", word("one"))
    assert said(one) == "one"
    with pytest.raises(BundleError, match="the manifest says 000000000000"):
        said(Program(one.path, "0" * 64))


def test_what_takes_the_file_s_place_before_the_start_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was hashed is started, whatever the path leads to by then."""
    # A script's interpreter opens the path again, so only a program tells: this one echoes.
    path = tmp_path / "engine"
    shutil.copy("/bin/cat", path)
    cat = Program(path, hashlib.sha256(path.read_bytes()).hexdigest())
    mark = tmp_path / "started"
    real = subprocess.Popen

    def replace_and_start(*arguments: Any, **named: Any) -> Any:
        other = script(tmp_path / "other", f"touch {mark}")
        other.path.replace(path)
        return real(*arguments, **named)

    monkeypatch.setattr(engine_process.subprocess, "Popen", replace_and_start)
    process = EngineProcess([cat], name=None, environment={})
    process.send({"word": "the same"})
    assert process.receive(in_time) == {"word": "the same"}
    process.close()
    assert not mark.exists()
    monkeypatch.undo()
    with pytest.raises(BundleError, match="altered"):
        EngineProcess([cat], name=None, environment={})


def make_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (make_link, "cannot be read, so it is not run: Too many levels of symbolic links"),
        (make_pipe, "not a regular file"),
        (lambda path: path.unlink(), "cannot be read, so it is not run: No such file"),
        (lambda path: path.chmod(0o644), r"does not start: Permission denied; try `chmod \+x "),
    ],
)
def test_what_is_no_program_is_not_run(
    change: Callable[[Path], None], problem: str, tmp_path: Path
) -> None:
    one = script(tmp_path / "engine", word("one"))
    change(one.path)
    with pytest.raises((BundleError, EngineDiedError), match=problem) as error:
        said(one)
    assert str(one.path) in str(error.value)


def test_a_program_of_another_machine_is_called_one(tmp_path: Path) -> None:
    path = tmp_path / "engine"
    path.write_bytes(b"\x7fELF for another machine")
    path.chmod(0o755)
    other = Program(path, hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(EngineDiedError, match="Exec format error: it is no program for this comp"):
        said(other)


@pytest.fixture
def forbidding(tmp_path: Path) -> Iterator[Path]:
    """A folder on whose file system nothing may be run."""
    folder = tmp_path / "disk"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    noexec = 8
    if libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", noexec, None) != 0:
        pytest.skip(f"mounting needs root: {os.strerror(ctypes.get_errno())}")
    yield folder
    libc.umount2(str(folder).encode(), 2)  # lazily: a failed test may still hold it


def test_a_disk_that_lets_nothing_run_is_named(forbidding: Path) -> None:
    inside = forbidding / "bundle"
    inside.mkdir()
    one = script(inside / "engine", word("one"))
    expected = (
        f"{one.path}: does not start: Permission denied: what is mounted at {forbidding} may not "
        "run programs (noexec); copy the bundle to another place, such as your home folder, and "
        "use it there"
    )
    with pytest.raises(EngineDiedError) as error:
        said(one)
    assert str(error.value) == expected


def test_golden_answers_of_a_bundle_on_such_a_disk(forbidding: Path, tmp_path: Path) -> None:
    """Converting to it works: the bundle may be for phones."""
    one = script(forbidding / "engine", word("one"))
    with _where_it_may_run(one) as copy:
        assert copy.path.parent not in (forbidding, tmp_path)
        assert said(copy) == "one"
    assert not copy.path.exists()
    here = script(tmp_path / "engine", word("one"))
    with _where_it_may_run(here) as same:
        assert same is here
