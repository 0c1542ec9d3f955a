"""Each image of a picture goes through the stages; planted faults show where they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from convert.checkpoint.reader import Checkpoint
from runtime.inputs.slices import Images
from runtime.reference.load import load_reference
from runtime.verify.check import Check
from runtime.verify.measure.losses import StageLosses
from runtime.verify.measure.pictures import EncodedPicture, compare_picture
from runtime.verify.measure.run import load_settings
from runtime.verify.measure.steps import Steps
from runtime.verify.stages import Shape, Stages, TorchStages
from tests.support.slices import write_slices_checkpoint


class NoSlices(TorchStages):
    """A model that never cuts."""

    def images(self, picture: Image.Image) -> Images:
        images = super().images(picture)
        return Images(images.pixels[:1], None)


class ColumnsFirst(TorchStages):
    """A model whose slices come column by column."""

    def images(self, picture: Image.Image) -> Images:
        images = super().images(picture)
        assert images.grid == (2, 2)
        return replace(images, pixels=tuple(images.pixels[i] for i in (0, 1, 3, 2, 4)))


class OneShape(TorchStages):
    """A model whose keys have the positions of a wide image, whatever its shape."""

    def resample(self, features: Tensor, shape: Shape) -> Tensor:
        return super().resample(features, (1, shape[0] * shape[1]))


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> TorchStages:
    folder = tmp_path_factory.mktemp("slices") / "checkpoint"
    write_slices_checkpoint(folder, scale_resolution=56, max_slice_nums=4)
    model = load_reference(Checkpoint.open(folder))
    return TorchStages(model)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    levels = np.random.default_rng(0).integers(0, 256, (112, 120, 3), dtype=np.uint8)
    return Image.fromarray(levels)


def compare(
    right: TorchStages, bundle: Stages, picture: Image.Image
) -> tuple[EncodedPicture, dict[tuple[str, str, str], Check]]:
    losses = StageLosses(load_settings()["thresholds"])
    steps = Steps([], 0, lambda *_: None)
    encoded = compare_picture((right, right, bundle), picture, losses, steps)
    return encoded, {(c.stage, c.name, c.metric): c for c in losses.checks()}


def failed(checks: dict[tuple[str, str, str], Check]) -> set[tuple[str, str]]:
    return {key[:2] for key, check in checks.items() if not check.passed}


def test_a_model_beside_itself(stages: TorchStages, picture: Image.Image) -> None:
    encoded, checks = compare(stages, stages, picture)
    assert encoded.grid == (2, 2)
    assert [len(images) for images in encoded.images] == [5, 5, 5]
    assert not failed(checks)
    names = {key[:2] for key in checks}
    for stage, part in (
        ("preprocessing", "pixels"),
        ("vision features", "whole encoder"),
        ("resampler", "from features"),
        ("resampler", "image tokens"),
    ):
        assert {name for name in names if name[0] == stage and name[1].startswith(part)} == {
            (stage, f"{part}, overview"),
            (stage, f"{part}, slices"),
        }
    pixels = stages.images(picture).pixels
    shape = (pixels[3].shape[2] // 14, pixels[3].shape[3] // 14)
    x = stages.vision_embed(pixels[3][0])
    assert stages.config.vision is not None
    for i in range(stages.config.vision.depth):
        x = stages.vision_block(i, x)
    expected = stages.resample(stages.vision_norm(x), shape)
    assert torch.equal(encoded.images[2][3], expected)


def test_a_small_picture_is_an_overview(stages: TorchStages, picture: Image.Image) -> None:
    encoded, checks = compare(stages, stages, picture.resize((50, 40)))
    assert encoded.grid is None and len(encoded.images[0]) == 1
    assert not any(name.endswith("slices") for _, name, _ in checks)


@pytest.mark.parametrize(
    ("fault", "where"),
    [
        (NoSlices, {("cut", "images")}),
        (
            ColumnsFirst,
            {
                ("preprocessing", "pixels, slices"),
                ("vision features", "whole encoder, slices"),
                ("resampler", "image tokens, slices"),
            },
        ),
        (
            OneShape,
            {
                (stage, f"{name}, {image}")
                for stage, name in (("resampler", "from features"), ("resampler", "image tokens"))
                for image in ("overview", "slices")
            },
        ),
    ],
)
def test_a_fault_shows_where_it_is(
    fault: type[TorchStages],
    where: set[tuple[str, str]],
    stages: TorchStages,
    picture: Image.Image,
) -> None:
    _, checks = compare(stages, fault(stages._model), picture)
    assert failed(checks) == where


def test_a_picture_of_several_images_counts_as_one(
    stages: TorchStages, picture: Image.Image
) -> None:
    seen: list[tuple[int, int]] = []
    vision = stages.config.vision
    assert vision is not None
    steps = Steps([], vision.depth, lambda _, done, total: seen.append((done, total)), 1)
    losses = StageLosses(load_settings()["thresholds"])
    compare_picture((stages, stages, stages), picture, losses, steps)
    assert len(seen) == 5 * vision.depth
    assert seen[-1] == (vision.depth, vision.depth)
