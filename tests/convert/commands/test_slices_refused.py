"""What cannot hold a model with slices says so, and what works: one line, nothing written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from convert import cli
from tests.support.bundles import snapshot, write_bundle
from tests.support.slices import SLICES, write_slices_checkpoint

MESSAGE = "images of several shapes (slice_mode, MiniCPM-V 2.0)"
WORKS = "`minicpmv chat`, `serve`, `info`, the Python API"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Runs a command that must fail with one line; returns it."""
    capsys.readouterr()
    assert cli.main(list(arguments)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("SlicesError: ")
    assert MESSAGE in line and WORKS in line
    return line


def _claim_slices(manifest: Path) -> None:
    raw = json.loads(manifest.read_text("utf-8"))
    raw["model"] |= SLICES
    manifest.write_text(json.dumps(raw), "utf-8")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slices_checkpoint(tmp_path_factory.mktemp("slices") / "checkpoint")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose manifest says that its model cuts pictures."""
    folder = write_bundle(tmp_path_factory.mktemp("bundle") / "bundle")
    _claim_slices(folder / "bundle.json")
    return folder


@pytest.mark.parametrize("target", ["host", "android-arm64", "host,onnx", "onnx,host"])
@pytest.mark.parametrize("mode", [True, False])
def test_convert(
    tmp_path: Path, target: str, mode: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether the pictures are cut or not, positions are another model's."""
    source = write_slices_checkpoint(tmp_path / "checkpoint", slice_mode=mode)
    said = refused(capsys, "convert", str(source), "-o", str(tmp_path / "out"), "--target", target)
    assert str(source) in said
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_convert_leaves_an_earlier_bundle(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = write_bundle(tmp_path / "bundle")
    before = snapshot(earlier)
    refused(capsys, "convert", str(checkpoint), "-o", str(earlier))
    assert snapshot(earlier) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("info", "BUNDLE"),
        ("verify", "BUNDLE"),
        ("bench", "BUNDLE"),
        ("compare", "BUNDLE", "ANOTHER"),
        ("chat", "BUNDLE", "--prompt", "What?"),
        ("chat", "BUNDLE", "--prompt", "What?", "--engine", "reference"),
        ("serve", "BUNDLE"),
        ("apk", "BUNDLE", "-o", "OUT/app.apk"),
        ("eval", "BUNDLE", "--benchmark", "mme", "--data", "OUT"),
    ],
)
def test_a_bundle_that_claims_slices(
    bundle: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    another = shutil.copytree(bundle, tmp_path / "another")
    named = {"BUNDLE": str(bundle), "OUT": str(tmp_path), "OUT/app.apk": str(tmp_path / "new.apk")}
    named["ANOTHER"] = str(another)
    said = refused(capsys, *(named.get(argument, argument) for argument in arguments))
    assert str(bundle) in said
    assert not (tmp_path / "new.apk").exists()


def test_info_describes_such_a_checkpoint(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["info", str(checkpoint), "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert "an overview and up to 9 slices of about 448² px" in info["vision"]
    assert info["resampler"] == "64 image tokens for each image"
    assert "converted" not in info
    assert cli.main(["info", str(checkpoint)]) == 0
    assert "converted" not in capsys.readouterr().out
