"""A bundle of a model that cuts pictures into slices, as `convert` writes it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from convert import cli
from convert.bundle.manifest import Bundle
from convert.checkpoint.reader import Checkpoint
from quantize.layout import untile_f16
from runtime.inputs.defaults import GenerationDefaults
from tests.support.bundles import convert_without_programs
from tests.support.slices import write_slices_checkpoint


@pytest.fixture(params=[True, False], ids=["slices", "one image"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    source = write_slices_checkpoint(tmp_path / "checkpoint", slice_mode=request.param)
    return convert_without_programs(source, tmp_path / "bundle")


def test_what_positions_are_made_from_is_stored(folder: Path) -> None:
    bundle, checkpoint = Bundle.open(folder), Checkpoint.open(folder.with_name("checkpoint"))
    stored = load_file(folder / "weights.safetensors")
    width = bundle.config.decoder.hidden_size
    trained = checkpoint.read("vpm.pos_embed")[0].float().numpy()
    np.testing.assert_array_equal(stored["vision.pos_embed"], trained)
    packed = checkpoint.read("resampler.attn.in_proj_weight")[width : 2 * width].half().numpy()
    halves = [
        untile_f16(stored[f"resampler.key_{name}_proj.weight"], width) for name in ("column", "row")
    ]
    np.testing.assert_array_equal(np.concatenate(halves, axis=1), packed)
    bias = checkpoint.read("resampler.attn.in_proj_bias")[width : 2 * width].float()
    assert torch.equal(torch.from_numpy(stored["resampler.k_proj.bias"]), bias)
    assert "resampler.key_positions" not in stored
    manifest = json.loads((folder / "bundle.json").read_text("utf-8"))
    assert manifest["model"]["scale_resolution"] == 448


def test_defaults_are_those_of_slices(folder: Path) -> None:
    defaults = GenerationDefaults.load(folder / "generation.json")
    assert defaults.for_model(Bundle.open(folder).config).window == 2048


def test_card_and_info_say_which_images(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = Bundle.open(folder)
    assert bundle.config.vision is not None and bundle.config.vision.slices is not None
    many = bundle.config.vision.slices.max_slice_nums > 1
    images = "an overview and up to 9 slices" if many else "one image"
    said = f"{images} of about 448² px, patches of 14 px"
    assert f"| pictures | {said} |" in (folder / "README.md").read_text("utf-8")
    capsys.readouterr()
    assert cli.main(["info", str(folder), "--json"]) == 0
    assert said in json.loads(capsys.readouterr().out)["vision"]
