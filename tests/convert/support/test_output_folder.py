import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from convert.support.output_folder import FolderKind, OutputFolder, OutputFolderError

KIND = FolderKind(manifest="thing.json", format="a-thing", noun="thing")

WRITER = """
import sys, time
from pathlib import Path
from convert.support.output_folder import FolderKind, OutputFolder, OutputFolderError
kind = FolderKind(manifest="thing.json", format="a-thing", noun="thing")
with OutputFolder(Path(sys.argv[1]), kind) as folder:
    (folder / "half").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def fill(folder: Path, text: str) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "data").write_text(text)
    files = {"sub/data": {}}
    (folder / KIND.manifest).write_text(json.dumps({"format": KIND.format, "files": files}))


def make(path: Path, text: str) -> None:
    output = OutputFolder(path, KIND)
    with output as folder:
        fill(folder, text)
        output.commit()


def test_appears_whole(tmp_path: Path) -> None:
    output = OutputFolder(tmp_path / "new" / "deep" / "out", KIND)
    with output as folder:
        fill(folder, "a")
        assert not output.path.exists()
        output.commit()
    assert (output.path / "sub" / "data").read_text() == "a"
    assert os.listdir(output.path.parent) == ["out"]


def test_replaces_its_own_kind_and_empty_folders(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    make(tmp_path / "out", "a")
    make(tmp_path / "out", "b")
    assert (tmp_path / "out" / "sub" / "data").read_text() == "b"
    assert os.listdir(tmp_path) == ["out"]


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    make(tmp_path / "real", "a")
    (tmp_path / "link").symlink_to("real")
    make(tmp_path / "link", "b")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "sub" / "data").read_text() == "b"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_nothing_and_keeps_what_was_there(
    tmp_path: Path, error: type[BaseException]
) -> None:
    make(tmp_path / "out", "a")
    for path in (tmp_path / "out", tmp_path / "new" / "deep"):
        with pytest.raises(error), OutputFolder(path, KIND) as folder:
            fill(folder, "b")
            raise error
    assert os.listdir(tmp_path) == ["out"]
    assert (tmp_path / "out" / "sub" / "data").read_text() == "a"


def test_a_failed_swap_puts_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "out", "a")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise PermissionError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(PermissionError):
        make(tmp_path / "out", "b")
    assert os.listdir(tmp_path) == ["out"]
    assert (tmp_path / "out" / "sub" / "data").read_text() == "a"


def test_other_things_are_left_alone(tmp_path: Path) -> None:
    file, folder, foreign, extra = (tmp_path / name for name in ("f", "d", "j", "x"))
    file.write_text("mine")
    folder.mkdir()
    (folder / "mine").write_text("mine")
    foreign.mkdir()
    (foreign / KIND.manifest).write_text('{"format": "another"}')
    make(extra, "a")
    (extra / "sub" / "notes").write_text("mine")
    for path, problem in (
        (file, "exists and is not a folder"),
        (folder, "exists but holds no thing"),
        (foreign, "exists but holds no thing"),
        (extra, "holds sub/notes, which is not part of the thing"),
    ):
        with pytest.raises(OutputFolderError, match=f"{path.name}: {problem}"):
            OutputFolder(path, KIND)
    assert file.read_text() == (folder / "mine").read_text() == "mine"
    assert (extra / "sub" / "notes").read_text() == "mine"


def test_what_appears_meanwhile_is_left_alone(tmp_path: Path) -> None:
    output = OutputFolder(tmp_path / "out", KIND)
    with pytest.raises(OutputFolderError, match="exists but holds no thing"), output as folder:
        fill(folder, "a")
        output.path.mkdir()
        (output.path / "mine").write_text("mine")
        output.commit()
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(output.path) == ["mine"]


def test_space_is_asked_for(tmp_path: Path) -> None:
    output = OutputFolder(tmp_path / "not" / "there", KIND)
    output.require_space(1)
    with pytest.raises(OutputFolderError, match=r"the disk has .* MiB free, the thing takes about"):
        output.require_space(1 << 60)


def test_a_disk_that_runs_full_is_said_in_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputFolderError, match="the disk became full"),
        OutputFolder(tmp_path / "o", KIND),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not os.listdir(tmp_path)


def test_what_a_killed_run_left_is_removed_but_not_what_a_living_one_writes(
    tmp_path: Path,
) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "out")], stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"writing\n"
        assert len(os.listdir(tmp_path)) == 2
        writers[0].send_signal(signal.SIGKILL)
        writers[0].wait()
        assert len(os.listdir(tmp_path)) == 2
        make(tmp_path / "out", "a")
        assert len(os.listdir(tmp_path)) == 2  # `out`, and the living writer's
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    make(tmp_path / "out", "b")
    assert os.listdir(tmp_path) == ["out"]


def test_a_swap_that_was_cut_in_two_is_finished(tmp_path: Path) -> None:
    make(tmp_path / "out", "a")
    (tmp_path / "out").rename(tmp_path / ".out.old-0123abcd")
    with OutputFolder(tmp_path / "out", KIND):
        assert (tmp_path / "out" / "sub" / "data").read_text() == "a"
    assert os.listdir(tmp_path) == ["out"]


def test_alike_names_are_not_stale(tmp_path: Path) -> None:
    for name in (".out.partial-mine", ".out2.partial-0123abcd", "out.partial-0123abcd"):
        (tmp_path / name).mkdir()
    make(tmp_path / "out", "a")
    assert len(os.listdir(tmp_path)) == 4
