"""A conversion that is interrupted anywhere continues with --resume, and gives the same bundle."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from convert.bundle.journal import JOURNAL
from convert.bundle.plan import Recipe, make_plan
from convert.bundle.weights_writer import Mark, WeightsWriter
from convert.checkpoint.config import ModelConfig
from convert.checkpoint.reader import Checkpoint
from convert.checkpoint.shards import StoredTensor
from tests.support.bundles import convert, snapshot, without_programs
from tests.support.tiny import random_state, write_checkpoint
from tests.support.tiny_config import tiny_config

WEIGHTS = "weights.safetensors"
ALL = len(make_plan(ModelConfig.from_json(tiny_config()), False, Recipe.load("q4f16_1")).stored)
# Converts with stand-ins for engines, and stops where it is told to: `tensor N` of the weights,
# `mark N`, between a tensor and its line in the journal, or `engine`.
BROKEN = """
import os, signal, sys
import pytest
from convert import cli, encode
from convert.bundle import journal
from convert.conversion import bundle_writer
from tests.support import bundles

place, number, sent, *arguments = sys.argv[1:]
bundles.without_programs(pytest.MonkeyPatch())
seen = 0

def stop_at(owner, name, thing):
    function = getattr(owner, name)
    def stopped(*arguments, **more):
        global seen
        seen += 1
        if place == thing and seen > int(number):
            os.kill(os.getpid(), getattr(signal, sent))
        return function(*arguments, **more)
    setattr(owner, name, stopped)

stop_at(*{
    "tensor": (encode, "encode", "tensor"),
    "mark": (journal.Journal, "add", "mark"),
    "engine": (bundle_writer, "build_program", "engine"),
}[place])
if not {"--quant", "--method"} & set(arguments):
    arguments += ["--method", "rtn"]
sys.exit(cli.main(["convert", *arguments]))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(autouse=True)
def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    without_programs(monkeypatch)


@pytest.fixture(scope="module")
def whole(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Returns what a run makes that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole") / "b"
    with pytest.MonkeyPatch.context() as patch:
        without_programs(patch)
        assert convert(checkpoint, folder) == 0
    return snapshot(folder)


def break_off(
    checkpoint: Path, output: Path, place: str, number: int, sent: str = "SIGKILL"
) -> Path:
    """Converts until a signal ends it; returns the folder in the making."""
    command = [sys.executable, "-c", BROKEN, place, str(number), sent, str(checkpoint)]
    done = subprocess.run(
        [*command, "-o", str(output)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (-signal.SIGKILL, 130, 128 + signal.SIGTERM), done.stderr
    assert not output.exists()
    (left,) = output.parent.glob(f".{output.name}.partial-*")
    return left


def resume(checkpoint: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> int:
    """Goes on; returns how many tensors were there already."""
    capsys.readouterr()
    assert convert(checkpoint, output, "--resume", "--json") == 0
    found: int = json.loads(capsys.readouterr().out)["resumed_tensors"]
    assert os.listdir(output.parent) == [output.name]
    return found


@pytest.mark.parametrize(
    ("place", "number", "sent"),
    [
        ("tensor", 40, "SIGKILL"),
        ("mark", 40, "SIGKILL"),
        ("engine", 0, "SIGKILL"),
        ("tensor", 40, "SIGINT"),
        ("engine", 0, "SIGTERM"),
    ],
)
def test_goes_on_where_it_was_broken_off(
    checkpoint: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
    place: str,
    number: int,
    sent: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    break_off(checkpoint, tmp_path / "b", place, number, sent)
    found = resume(checkpoint, tmp_path / "b", capsys)
    assert found == ALL if place == "engine" else 30 < found < ALL
    assert snapshot(tmp_path / "b") == whole


def test_nothing_to_go_on_from(
    checkpoint: Path, whole: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resume(checkpoint, tmp_path / "b", capsys) == 0
    assert snapshot(tmp_path / "b") == whole


@pytest.fixture(scope="module")
def broken(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder in which a run was killed when all weights were written."""
    folder = tmp_path_factory.mktemp("broken")
    break_off(checkpoint, folder / "b", "engine", 0)
    return folder


def test_without_resume_it_begins_again(
    checkpoint: Path,
    broken: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(broken, tmp_path / "w")
    (tmp_path / "w" / ".b.partial-mine").mkdir()  # of somebody else: not one of our names
    assert convert(checkpoint, tmp_path / "w" / "b", "--json") == 0
    assert json.loads(capsys.readouterr().out)["resumed_tensors"] == 0
    assert snapshot(tmp_path / "w" / "b") == whole
    assert sorted(os.listdir(tmp_path / "w")) == [".b.partial-mine", "b"]


def _edit(change: Any) -> Any:
    """Returns what changes a journal's lines."""

    def damage(left: Path) -> None:
        path = left / JOURNAL
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(change(lines)))

    return damage


def _flip(left: Path) -> None:
    with (left / WEIGHTS).open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def _truncate(left: Path) -> None:
    os.truncate(left / WEIGHTS, (left / WEIGHTS).stat().st_size // 2)


def _grow(left: Path) -> None:
    with (left / WEIGHTS).open("ab") as file:
        file.write(b"more" * 1000)


def _header(left: Path) -> None:
    with (left / WEIGHTS).open("r+b") as file:
        file.seek(20)
        file.write(b"?")


def _link(left: Path) -> None:
    (left / WEIGHTS).rename(left.parent / "elsewhere")
    (left / WEIGHTS).symlink_to(left.parent / "elsewhere")


def _foreign(left: Path) -> None:
    (left / "notes.txt").write_text("left by an engine")
    (left / "engine").mkdir(exist_ok=True)
    (left / "engine" / "old").write_text("of another target")


def _no_mark(lines: list[str]) -> list[str]:
    return [*lines[:5], '{"tensors": 7, "sha256": "' + "0" * 64 + '"}\n', *lines[7:]]


DAMAGE = {
    "flipped bit": (_flip, range(1, ALL)),
    "truncated weights": (_truncate, range(1, ALL)),
    "more behind the weights": (_grow, [ALL]),
    "header of the weights": (_header, [0]),
    "link instead of weights": (_link, [0]),
    "no weights": (lambda left: (left / WEIGHTS).unlink(), [0]),
    "other files": (_foreign, [ALL]),
    "no journal": (lambda left: (left / JOURNAL).unlink(), [0]),
    "journal cut in a line": (_edit(lambda lines: [*lines[:-1], lines[-1][:30]]), [ALL - 1]),
    "journal is no JSON": (_edit(lambda lines: ["{", *lines[1:]]), [0]),
    "journal of another format": (_edit(lambda lines: ['["a"]\n', *lines[1:]]), [0]),
    "line with another hash": (_edit(_no_mark), range(1, 8)),
    "line that goes back": (_edit(lambda lines: [*lines, lines[3]]), [ALL]),
    "line that is no mark": (_edit(lambda lines: [*lines[:4], '{"tensors": true}\n']), range(1, 8)),
    "empty journal": (_edit(lambda lines: []), [0]),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_damaged_is_made_again(
    name: str,
    checkpoint: Path,
    broken: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (left,) = broken.iterdir()
    shutil.copytree(left, tmp_path / "w" / left.name)
    damage, expected = DAMAGE[name]
    damage(tmp_path / "w" / left.name)
    outside = snapshot(tmp_path / "w") if name.startswith("link") else {}
    capsys.readouterr()
    assert convert(checkpoint, tmp_path / "w" / "b", "--resume", "--json") == 0
    assert json.loads(capsys.readouterr().out)["resumed_tensors"] in expected
    assert snapshot(tmp_path / "w" / "b") == whole
    if outside:
        assert (tmp_path / "w" / "elsewhere").read_bytes() == outside["elsewhere"]


@pytest.mark.parametrize("what", ["checkpoint", "recipe"])
def test_other_work_begins_again(
    what: str,
    checkpoint: Path,
    broken: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    shutil.copytree(broken, tmp_path / "w")
    arguments = ["--method", "mse"] if what == "recipe" else []
    if what == "checkpoint":
        state = random_state(tiny_config())
        state["llm.model.norm.weight"][0] += 1
        checkpoint = write_checkpoint(tmp_path / "changed", state=state)
    assert convert(checkpoint, tmp_path / "expected", *arguments) == 0
    capsys.readouterr()
    assert convert(checkpoint, tmp_path / "w" / "b", *arguments, "--resume", "--json") == 0
    assert json.loads(capsys.readouterr().out)["resumed_tensors"] == 0
    assert f"of another conversion (another {what}" in caplog.text
    assert snapshot(tmp_path / "w" / "b") == snapshot(tmp_path / "expected")


def test_a_full_disk_leaves_what_can_go_on(
    checkpoint: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    most = len(whole[WEIGHTS]) // 2
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        assert convert(checkpoint, tmp_path / "b") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "SpaceError: " in (error := capsys.readouterr().err)
    assert "free some space and continue with --resume" in error
    assert resume(checkpoint, tmp_path / "b", capsys) > 30
    assert snapshot(tmp_path / "b") == whole


def test_resume_is_for_bundles(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(checkpoint, tmp_path / "b", "--target", "onnx", "--resume") == 2
    assert "--resume is for bundles; choose a target such as host" in capsys.readouterr().err
    assert not os.listdir(tmp_path)


def test_each_tensor_is_read_once_and_the_weights_are_written_once(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: Counter[str] = Counter()
    written: Counter[str] = Counter()
    names = Checkpoint.open(checkpoint).names()
    read, write, opened = StoredTensor.read, WeightsWriter.write, Checkpoint.open

    def counted_read(self: StoredTensor) -> torch.Tensor:
        reads[self.key] += 1
        return read(self)

    def counted_write(self: WeightsWriter, name: str, values: Any) -> None:
        written[name] += 1
        write(self, name, values)

    def opened_first(source: Any) -> Checkpoint:
        found = opened(source)
        reads.clear()  # opening compares the embedding with the copy of it that is the LM head
        return found

    monkeypatch.setattr(StoredTensor, "read", counted_read)
    monkeypatch.setattr(WeightsWriter, "write", counted_write)
    monkeypatch.setattr(Checkpoint, "open", opened_first)
    assert convert(checkpoint, tmp_path / "b", "--target", "host,android-arm64") == 0
    assert set(reads) == set(names)
    assert set(reads.values()) == set(written.values()) == {1}


def test_marks_beyond_the_file_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "w"
    with WeightsWriter(path, []) as writer:
        digest = writer.sha256()
    with WeightsWriter(path, [], [Mark(1, digest)]) as writer:
        assert writer.kept is None
        assert writer.sha256() == digest
