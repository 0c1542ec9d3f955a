"""Commands and a configuration with slices."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from convert import cli
from tests.support.bundles import write_bundle
from tests.support.slices import SLICES, write_slices_checkpoint


def _claim_slices(manifest: Path) -> None:
    raw = json.loads(manifest.read_text("utf-8"))
    raw["model"] |= SLICES
    manifest.write_text(json.dumps(raw), "utf-8")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slices_checkpoint(tmp_path_factory.mktemp("slices") / "checkpoint")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose manifest says that its model cuts pictures, which its tensors do not fit."""
    folder = write_bundle(tmp_path_factory.mktemp("bundle") / "bundle")
    _claim_slices(folder / "bundle.json")
    return folder


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
    capsys.readouterr()
    assert cli.main([named.get(argument, argument) for argument in arguments]) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert said.startswith("BundleError: ") and str(bundle) in said
    assert not (tmp_path / "new.apk").exists()


def test_info_describes_such_a_checkpoint(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["info", str(checkpoint), "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert "an overview and up to 9 slices of about 448² px" in info["vision"]
    assert info["resampler"] == "64 image tokens for each image"
    assert info["converted"].keys() >= {"small", "best"}
    assert cli.main(["info", str(checkpoint)]) == 0
    assert "with --quant small" in capsys.readouterr().out
