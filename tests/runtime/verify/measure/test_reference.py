"""The reference's results in a file: the same figures without the model, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convert.bundle.weights_file import WeightsFile
from convert.checkpoint.config import ModelConfig
from convert.checkpoint.reader import Checkpoint
from quantize.errors import ConfigError, ToolkitError
from runtime.inputs.picture_format import PictureError
from runtime.verify import verify as module
from runtime.verify.cases import Case, built_in_cases
from runtime.verify.measure import kept
from runtime.verify.measure.kept import ReferenceFile, ReferenceResultsError, ReferenceWriter
from runtime.verify.measure.reference import _cuts, results_bytes
from runtime.verify.report.report import Report
from runtime.verify.verify import verify
from tests.support.slices import slices_config

ABOUT = {"reference": "a", "toolkit": "1", "cases": ["x"], "window": 64, "max_new_tokens": 8}


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "own.jsonl"
    lines = [{"question": "Hello!"}, {"question": "你好"}]
    path.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    return path


def figures(report: Report) -> list[tuple[str, str, str, float]]:
    return [(c.stage, c.name, c.metric, c.value) for c in report.checks]


def test_results_stand_for_the_model(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, loaded = tmp_path / "reference.safetensors", []
    load = module.load_reference

    def counted(checkpoint: Checkpoint, **options: bool) -> object:
        loaded.append(options)
        return load(checkpoint, **options)

    monkeypatch.setattr(module, "load_reference", counted)
    saved = verify(bundle, save_reference=file)
    assert len(loaded) == 2, "the arithmetic's model is made from the checkpoint, too"
    assert not list(tmp_path.glob(".*")), "nothing else is left"
    read = verify(bundle, reference_results=file)
    assert len(loaded) == 3
    assert (saved.passed, read.passed) == (True, True)
    assert figures(read) == figures(saved)
    assert read.answers == saved.answers


def test_what_is_kept_takes_no_more_than_said(bundle: Path, tmp_path: Path) -> None:
    report = verify(bundle, save_reference=tmp_path / "file")
    checkpoint = Checkpoint.open(report.reference)
    settings = module.load_settings()["built_in"]
    cases = built_in_cases(settings, checkpoint.config.vision)
    most = results_bytes(checkpoint, cases, settings["max_new_tokens"])
    assert most / 3 < (tmp_path / "file").stat().st_size < most + 100_000  # names and hashes


def test_results_of_something_else_are_refused(
    bundle: Path, questions: Path, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    verify(bundle, data=questions, save_reference=file)
    with pytest.raises(ReferenceResultsError, match="file: holds answers to other questions"):
        verify(bundle, reference_results=file)
    with pytest.raises(ReferenceResultsError, match=r"another context window: 1024; expected 512"):
        verify(bundle, data=questions, window=512, reference_results=file)
    with pytest.raises(ReferenceResultsError, match="nothing here"):
        verify(bundle, data=questions, reference_results=tmp_path / "nothing here")
    with pytest.raises(ConfigError, match="--save-reference and --reference-results"):
        verify(bundle, save_reference=file, reference_results=file)


@pytest.mark.parametrize("key", ABOUT)
def test_each_difference_has_its_name(tmp_path: Path, key: str) -> None:
    file = write(tmp_path / "file")
    with pytest.raises(ReferenceResultsError, match=f"holds {kept._OTHER[key]}"):
        ReferenceFile(file, ABOUT | {key: "other"}, lambda *_: None)


def write(path: Path) -> Path:
    with ReferenceWriter(path, ABOUT, 1000) as writer:
        writer.add("one", np.arange(6, dtype=np.float32).reshape(2, 3))
        writer.add("two", np.arange(5, dtype=np.uint8))
        assert writer.get("one") is None
        writer.commit()
        writer.add("late", np.zeros(1, np.float32))
    return path


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    file = ReferenceFile(write(tmp_path / "file"), ABOUT, lambda *_: None)
    one, two = file.get("one"), file.get("two")
    assert one is not None and two is not None
    assert one.tolist() == [[0, 1, 2], [3, 4, 5]] and two.tolist() == [0, 1, 2, 3, 4]
    assert file.get("late") is None


def flip(name: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        data = WeightsFile(path)[name].tobytes()
        raw = bytearray(path.read_bytes())
        raw[raw.rfind(data)] ^= 1
        path.write_bytes(raw)

    return change


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def rename(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"two":{', b'"tow":{'))


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (flip("one"), "damaged: one is not as it was written"),
        (flip("about"), "damaged: its description is not as it was written"),
        (cut, "truncated"),
        (rename, "damaged: tow is not as it was written"),
        (lambda path: path.write_bytes(b"no results"), "not a safetensors file"),
        (lambda path: path.unlink(), "cannot be read: No such file"),
    ],
)
def test_a_damaged_file_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], what: str
) -> None:
    damage(write(tmp_path / "file"))
    with pytest.raises(ReferenceResultsError, match=f"file: .*{what}.*--save-reference"):
        ReferenceFile(tmp_path / "file", ABOUT, lambda *_: None)


def test_weights_are_no_results(tmp_path: Path, bundle: Path) -> None:
    with pytest.raises(ReferenceResultsError, match="damaged: 'about'"):
        ReferenceFile(bundle / "weights.safetensors", ABOUT, lambda *_: None)


def test_no_room_is_said_before_anything_is_asked(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(kept.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ReferenceResultsError, match="0 MiB free, but the results"):
        verify(bundle, save_reference=tmp_path / "file")
    with pytest.raises(ToolkitError, match="no such folder"):
        verify(bundle, save_reference=tmp_path / "gone" / "file")


def test_a_failed_run_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError),
        ReferenceWriter(tmp_path / "file", ABOUT, 1000) as writer,
    ):
        writer.add("one", np.zeros(3, np.float32))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_is_none_is_left_to_its_question() -> None:
    """The size of the file is told without it."""
    config = ModelConfig.from_json(slices_config())
    assert config.vision is not None

    def broken() -> Image.Image:
        raise PictureError("no picture")

    good = Case("good", (), lambda: Image.new("RGB", (900, 900)), "good")
    cuts = _cuts([Case("bad", (), broken, "bad"), good, Case("text", ())], config.vision)
    assert {digest: len(cut.sizes) for digest, cut in cuts.items()} == {"good": 5}  # 2 x 2 slices
