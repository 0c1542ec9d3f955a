"""The ONNX export of a model with slices: one graph for every shape, equal to the reference."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from convert.bundle.errors import BundleError
from convert.checkpoint.config import CONFIGS, ModelConfig
from convert.checkpoint.reader import Checkpoint
from convert.onnx.check import (
    Difference,
    compare_onnx,
    run_onnx,
    sample_pixels,
    sample_sizes,
    worst,
)
from convert.onnx.export import DATA, MODEL
from convert.onnx.graph import FEATURES, INPUT, TOKENS, build_graph
from convert.onnx.product import TOLERANCE, OnnxProduct
from runtime.inputs.slices import images_of
from runtime.reference.load import VISION, load_reference
from tests.support.bundles import convert
from tests.support.cards import ReadCard
from tests.support.compare import Record
from tests.support.slices import write_slices_checkpoint

# As in test_onnx.py; measured 1.5e-6, and 6e-6 of one column of 2,048 patches, where float32 holds
# the sine table's largest angles to 1e-4.
FLOAT32_ORDER = 1e-5
PATCH = 14
# Columns and rows: the smallest; below the trained grid, and equal to it; the square; a cell of a
# 4:3 picture; a long image and a high one; the most patches that an image has.
GRIDS = [(1, 1), (3, 2), (9, 9), (32, 32), (37, 28), (112, 9), (9, 112), (2048, 1), (1, 2048)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(write_slices_checkpoint(tmp_path_factory.mktemp("onnx") / "checkpoint"))


@pytest.fixture(scope="module")
def exported(checkpoint: Checkpoint) -> Path:
    """Made by the command, which compares it with the reference itself."""
    folder = checkpoint.path.with_name("out")
    assert convert(checkpoint.path, folder, "--target", "onnx") == 0
    return folder


def _pixels(columns: int, rows: int, count: int = 1) -> torch.Tensor:
    return sample_pixels((columns * PATCH, rows * PATCH), count)


def test_every_shape_equals_the_reference(
    checkpoint: Checkpoint, exported: Path, record_property: Record
) -> None:
    images = [_pixels(*grid) for grid in GRIDS]
    model = load_reference(checkpoint, only=VISION)
    differences = compare_onnx(exported / MODEL, model, images, threads=1)
    assert [d.size for d in differences[::2]] == [(c * PATCH, r * PATCH) for c, r in GRIDS]
    for d in differences:
        record_property(f"{d.output} of {d.size}", f"{d.relative:.3g}")
        assert d.scale > 0.1
        assert d.relative < FLOAT32_ORDER, d


def test_images_of_one_size_are_a_batch(exported: Path) -> None:
    """The slices of a picture can be encoded in one run."""
    pixels = _pixels(7, 5, 3)
    (together,) = run_onnx(exported / MODEL, [pixels], threads=1)
    for i, (features, tokens) in enumerate(
        run_onnx(exported / MODEL, list(pixels.split(1)), threads=1)
    ):
        torch.testing.assert_close(together[0][i : i + 1], features)
        torch.testing.assert_close(together[1][i : i + 1], tokens)


@pytest.mark.parametrize("wrong", ["rows for columns", "a square's positions"])
def test_wrong_positions_are_noticed(
    checkpoint: Checkpoint, exported: Path, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions are small beside the patches; the tolerance finds wrong ones all the same."""
    model = load_reference(checkpoint, only=VISION)
    assert model.vpm is not None and model.resampler is not None
    if wrong == "rows for columns":
        keys = model.resampler._key_positions
        monkeypatch.setattr(
            model.resampler, "_key_positions", lambda shape: keys((shape[1], shape[0]))
        )
    else:
        positions = model.vpm._positions(_pixels(6, 6))
        monkeypatch.setattr(model.vpm, "_positions", lambda pixels: positions)
    found = compare_onnx(exported / MODEL, model, [_pixels(9, 4)], threads=1)
    assert [d.relative > 10 * TOLERANCE for d in found] == [wrong != "rows for columns", True]


def test_the_checkpoint_s_sizes_are_compared(exported: Path, checkpoint: Checkpoint) -> None:
    """The card has a row for each size and output."""
    assert checkpoint.config.vision is not None
    sizes = sample_sizes(checkpoint.config.vision)
    assert sizes == [(14, 14), (224, 112), (112, 224), (504, 392)]
    rows = [row for row in ReadCard.of(exported).rows if row[0] in (FEATURES, TOKENS)]
    expected = [(name, f"{w} x {h}") for w, h in sizes for name in (FEATURES, TOKENS)]
    assert [(row[0], row[1]) for row in rows] == expected
    assert all(float(row[3]) < FLOAT32_ORDER for row in rows)


def test_a_difference_of_one_size_refuses_the_export(tmp_path: Path) -> None:
    near, far = (
        Difference(output=TOKENS, size=size, max_abs=apart, scale=1.0)
        for size, apart in (((14, 28), 1e-6), ((42, 14), 2e-4))
    )
    assert worst([near, far]) == [far]
    product = OnnxProduct.__new__(OnnxProduct)
    product._output = type("Output", (), {"path": tmp_path})()
    product._require_agreement([near])
    with pytest.raises(BundleError, match=r"image_tokens of 42 x 14 pixels.*2\.0e-04"):
        product._require_agreement([near, far])


def test_shapes_are_named(exported: Path, checkpoint: Checkpoint) -> None:
    model = onnx.load(exported / MODEL, load_external_data=False)
    shapes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        INPUT: ["batch", 3, "height", "width"],
        TOKENS: ["batch", 64, 256],
        FEATURES: ["batch", "patches", 144],
    }
    props = {entry.key: entry.value for entry in model.metadata_props}
    assert ModelConfig.from_json(json.loads(props["config"])) == checkpoint.config


def test_runtimes_of_phones_have_the_operators() -> None:
    """`Resize` with antialiasing is rare; what is used is as old as opset 20 and plain."""
    config = ModelConfig.load(CONFIGS / "model" / "minicpm-v-2.0.json")
    square = ModelConfig.load(CONFIGS / "model" / "minicpm-v-1.0.json")
    added = {n.op_type for n in build_graph(config).nodes}
    added -= {n.op_type for n in build_graph(square).nodes}
    assert added == {
        *("Abs", "Cast", "Concat", "Cos", "Div", "Expand", "Less", "Max", "Min", "Range"),
        *("ReduceSum", "Shape", "Sin", "Squeeze", "Sub", "Unsqueeze", "Where"),
    }


@pytest.mark.parametrize("size", [(40, 30), (449, 448), (1100, 500), (500, 1400), (1400, 1000)])
def test_the_card_s_code_cuts_and_encodes(
    checkpoint: Checkpoint, exported: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    """It gives what the reference gives for each image of a picture."""
    for name in (MODEL, DATA):
        (tmp_path / name).symlink_to(exported / name)
    random = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(random).save(tmp_path / "picture.jpg", format="PNG")
    found: dict[str, object] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        exec(ReadCard.of(exported).fences[0], found)
    assert checkpoint.config.vision is not None
    images = images_of(Image.fromarray(random), checkpoint.config.vision)
    assert (found["columns"], found["rows"]) == (images.grid or (0, 0))
    model = load_reference(checkpoint, only=VISION)
    assert model.vpm is not None and model.resampler is not None
    with torch.inference_mode():
        expected = [
            model.resampler(model.vpm(p), (p.shape[2] // PATCH, p.shape[3] // PATCH))
            for p in images.pixels
        ]
    torch.testing.assert_close(
        torch.tensor(found["tokens"]), torch.cat(expected), atol=1e-4, rtol=0
    )


def test_a_model_that_cuts_nothing(tmp_path: Path) -> None:
    """With `slice_mode` false a picture is one image, with the positions of its shape."""
    source = write_slices_checkpoint(tmp_path / "checkpoint", slice_mode=False)
    assert convert(source, tmp_path / "out", "--target", "onnx") == 0
    assert "MOST_SLICES = 448, 14, 1\n" in ReadCard.of(tmp_path / "out").fences[0]
    checkpoint = Checkpoint.open(source)
    model = load_reference(checkpoint, only=VISION)
    found = compare_onnx(tmp_path / "out" / MODEL, model, [_pixels(40, 25)], threads=1)
    assert max(d.relative for d in found) < FLOAT32_ORDER
