"""verify on a bundle of a model with slices: it passes, and planted faults are named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from convert.bundle.manifest import Bundle
from convert.cli import main
from runtime.inputs.picture import normalise
from runtime.inputs.slices import Images, cut_picture, plan_cut
from runtime.verify.diagnose.stored_stages import Deviations, StoredStages
from runtime.verify.stages import EngineStages, Shape
from tests.support.faulty_engines import Verified
from tests.support.needs import need_host_engine
from tests.support.once import once


@pytest.fixture(scope="module")
def sliced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the demo of 2.0."""
    need_host_engine()

    def make(folder: Path) -> None:
        command = ["convert", "demo-2.0", "-o", str(folder / "bundle"), "--target", "host"]
        assert main([*command, "--method", "rtn"]) == 0

    return once(tmp_path_factory, "sliced", make) / "bundle"


@pytest.fixture(scope="module")
def sliced_models(sliced: Path) -> Verified:
    return Verified(sliced)


class Exchanged(EngineStages):
    """An engine that has columns and rows of the grid exchanged."""

    def images(self, picture: Image.Image) -> Images:
        assert self.config.vision is not None
        cut = plan_cut(picture.size, self.config.vision)
        grid = None if cut.grid is None else cut.grid[::-1]
        return _images(picture, replace(cut, grid=grid))


class ColumnsFirst(EngineStages):
    """An engine whose slices come column by column."""

    def images(self, picture: Image.Image) -> Images:
        images = super().images(picture)
        if images.grid != (2, 2):
            return images
        return replace(images, pixels=tuple(images.pixels[i] for i in (0, 1, 3, 2, 4)))


def _images(picture: Image.Image, cut: Any) -> Images:
    return Images(tuple(map(normalise, cut_picture(picture, cut))), cut.grid)


def _interpolating(folder: Path) -> type[EngineStages]:
    """Returns an engine whose keys have the positions of a model without slices."""
    bundle = Bundle.open(folder)
    rules = Deviations(interpolated_keys=True)
    wrong = StoredStages(bundle.config, bundle.plan, bundle.weights(), rules=rules)

    class Interpolating(EngineStages):
        def resample(self, features: Tensor, shape: Shape) -> Tensor:
            return wrong.resample(features, shape)

    return Interpolating


def test_a_good_bundle_passes(
    sliced: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the command, with a file of the reference's results."""
    kept = str(tmp_path / "reference")
    capsys.readouterr()
    assert main(["verify", str(sliced), "--json", "--save-reference", kept]) == 0
    saved = json.loads(capsys.readouterr().out)
    assert main(["verify", str(sliced), "--json", "--reference-results", kept]) == 0
    read = json.loads(capsys.readouterr().out)
    assert saved["checks"] == read["checks"]
    names = {(check["stage"], check["name"]) for check in saved["checks"]}
    assert ("cut", "images") in names
    assert {("resampler", f"image tokens, {part}") for part in ("overview", "slices")} <= names
    assert saved["window"] == 2048


def test_a_good_bundle_has_no_cause(sliced: Path, sliced_models: Verified) -> None:
    assert sliced_models.causes(sliced) == ([], [])


@pytest.mark.parametrize(
    ("stages", "where", "why"),
    [
        (ColumnsFirst, "cut", "slices in column order, not row by row"),
        (_interpolating, "kernels: resampler", "interpolated from the queries', as for a square"),
    ],
)
def test_a_fault_is_named(
    stages: Any, where: str, why: str, sliced: Path, sliced_models: Verified
) -> None:
    kind = stages if isinstance(stages, type) else stages(sliced)
    failed, causes = sliced_models.causes(sliced, stages=kind)
    assert failed
    assert [cause.where for cause in causes] == [where], causes
    assert why in causes[0].why


def test_a_wrong_grid_is_named(
    sliced: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """Through the command, for a picture of the user's own."""
    levels = np.random.default_rng(0).integers(0, 256, (130, 340, 3), dtype=np.uint8)
    Image.fromarray(levels).save(tmp_path / "wide.png")
    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps({"question": "What?", "image": "wide.png"}) + "\n")
    monkeypatch.setattr("runtime.verify.verify.EngineStages", Exchanged)
    capsys.readouterr()
    assert main(["verify", str(sliced), "--json", "--data", str(questions)]) == 1
    report = json.loads(capsys.readouterr().out)
    (cause,) = report["causes"]
    assert cause["where"] == "cut"
    assert "1 x 3 slices, columns and rows exchanged: the reference has 3 x 1" in cause["why"]
