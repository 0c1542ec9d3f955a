"""A package of a model with slices: positions of the square, and the prompt of several images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from convert import cli
from convert.bundle.manifest import BundleSource
from convert.bundle.plan import Recipe
from convert.checkpoint.config import CONFIGS, ModelConfig
from convert.checkpoint.reader import Checkpoint
from convert.mlc.card import package_card
from convert.mlc.manifest import MANIFEST, PackageManifest
from convert.mlc.opened import MlcPackage
from convert.mlc.package import make_mlc_plan, write_package
from convert.mlc.square import cut_square, message_parts
from convert.support.progress import silent
from runtime.inputs.prompt import Message, Tokenizer
from runtime.reference.load import VISION, load_reference
from runtime.verify.mlc.prompts import package_encode, package_prompt
from tests.support.bundles import convert
from tests.support.slices import write_slices_checkpoint

QUESTION = "How many shapes are there?"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(write_slices_checkpoint(tmp_path_factory.mktemp("mlc") / "checkpoint"))


@pytest.fixture(scope="module")
def package(checkpoint: Checkpoint) -> MlcPackage:
    """With pictures, and not compiled."""
    folder = checkpoint.path.with_name("package")
    folder.mkdir()
    recipe = Recipe.load("mlc")
    plan = make_mlc_plan(checkpoint.config, checkpoint.untied_head, recipe, pictures=True)
    source = BundleSource(path="x", sha256=checkpoint.source_hash(), demo=False)
    write_package(checkpoint, source, plan, folder, silent)
    return MlcPackage.open(folder)


def test_positions_are_the_square_s(checkpoint: Checkpoint, package: MlcPackage) -> None:
    """Those that the reference has for 32 x 32 patches, and nothing for other shapes."""
    model = load_reference(checkpoint, only=VISION)
    assert model.vpm is not None and model.resampler is not None
    expected = model.vpm._positions(torch.zeros(1, 3, 448, 448))[0]
    stored = package.params["vision.pos_embed"]
    assert stored.dtype == np.float16 and np.array_equal(stored, expected.numpy().astype("f2"))
    attn = model.resampler.attn
    keys = F.linear(
        model.resampler._key_positions((32, 32)).double(),
        attn.in_proj_weight.chunk(3)[1].double(),
        attn.in_proj_bias.chunk(3)[1].double(),
    )
    found = torch.from_numpy(package.params["resampler.key_positions"].astype(np.float64))
    torch.testing.assert_close(found, keys, atol=1e-7, rtol=1e-3)
    square = make_mlc_plan(
        ModelConfig.load(CONFIGS / "demo" / "config.json"),
        checkpoint.untied_head,
        Recipe.load("mlc"),
        pictures=True,
    )
    assert {t.name for t in square.tensors} == {t.name for t in package.plan.tensors}


def test_settings(package: MlcPackage) -> None:
    config = package.chat["model_config"]
    vision = config["vision_config"]
    assert (vision["image_size"], vision["encoder_patch_size"]) == (448, 14)
    assert (vision["image_size"] // vision["patch_size"]) ** 2 == vision["num_queries"] == 64
    assert package.window == config["context_window_size"] == 2048
    assert [package.chat[key] for key in ("temperature", "top_p", "repetition_penalty")] == [
        0.7, 0.8, 1.05,
    ]  # fmt: skip
    assert package.manifest.slice_tags == ("<reserved_84>", "<reserved_85>")


def _texts(columns: int, rows: int, tags: tuple[str, str]) -> list[str]:
    """Returns the texts around the images of a picture."""
    start, end = tags
    between = [
        "</image>\n<image>" if n % columns == 0 else "</image><image>"
        for n in range(1, columns * rows)
    ]
    return ["<image>", f"</image>{start}<image>", *between, f"</image>{end}\n"]


@pytest.mark.parametrize("grid", [None, (1, 2), (2, 1), (2, 2), (3, 2), (1, 9), (3, 3)])
def test_the_parts_of_a_message_give_the_model_s_prompt(
    checkpoint: Checkpoint, package: MlcPackage, grid: tuple[int, int] | None
) -> None:
    assert checkpoint.tokenizer is not None and package.manifest.slice_tags is not None
    tokenizer = Tokenizer(checkpoint.tokenizer, checkpoint.config)
    messages: list[Message] = [{"role": "user", "content": QUESTION}]
    expected = tokenizer.prompt(messages, 64, grid=grid)
    texts = message_parts(grid, package.manifest.slice_tags)
    if grid is not None:
        assert texts == _texts(*grid, package.manifest.slice_tags)
    template, encode = package.chat["conv_template"], package_encode(package)
    assert package_prompt(template, encode, messages, 64, texts) == expected


def test_the_card_shows_these_parts(package: MlcPackage) -> None:
    card = package_card(package.manifest)
    shown = card.run.split("```text\n")[1].split("\n```")[0]
    texts = shown.replace(" OVERVIEW ", "|").replace(" SLICE ", "|").split("|")
    assert [t.removesuffix("QUESTION") for t in texts] == _texts(2, 2, ("<slice>", "</slice>"))
    assert "448 x 448" in card.run and "`<reserved_84>` and `<reserved_85>`" in card.run


def test_texts_need_no_square(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without MLC-LLM's sources a package holds the decoder alone, whatever the pictures are."""
    source, folder = write_slices_checkpoint(tmp_path / "checkpoint"), tmp_path / "package"
    assert convert(source, folder, "--target", "mlc-android") == 0
    manifest = PackageManifest.read(folder)
    assert manifest.pictures is False and manifest.slice_tags is None
    capsys.readouterr()
    assert cli.main(["info", str(folder)]) == 0
    assert "text only" in capsys.readouterr().out


def test_info_says_what_becomes_of_images(
    package: MlcPackage, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert cli.main(["info", str(package.path)]) == 0
    said = capsys.readouterr().out
    assert "the overview and each slice become 448 x 448 pixels, whatever their shape" in said
    assert cli.main(["info", str(package.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["square"] == 448


def test_a_manifest_of_an_earlier_version(package: MlcPackage, tmp_path: Path) -> None:
    """It has no tags of slices."""
    raw = json.loads((package.path / MANIFEST).read_text("utf-8"))
    del raw["slice_tags"]
    (tmp_path / MANIFEST).write_text(json.dumps(raw), "utf-8")
    assert PackageManifest.read(tmp_path).slice_tags is None


def test_models_of_squares_have_no_other() -> None:
    assert cut_square(ModelConfig.load(CONFIGS / "model" / "minicpm-v-1.0.json")) is None
    assert cut_square(ModelConfig.load(CONFIGS / "model" / "minicpm-v-2.0.json")) == 448
