"""A wrong cut and wrong pixels of slices are named; planted in images, without an engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from convert.checkpoint.config import ModelConfig, VisionConfig
from runtime.inputs.picture import normalise
from runtime.inputs.slices import Cut, Images, cut_picture, images_of, plan_cut
from runtime.verify.check import Cause
from runtime.verify.diagnose.picture_faults import picture_cause
from tests.support.slices import slices_config

Fault = Callable[[Image.Image, VisionConfig, Images], Images]


@pytest.fixture(scope="module")
def vision() -> VisionConfig:
    config = ModelConfig.from_json(slices_config(scale_resolution=56, max_slice_nums=6))
    assert config.vision is not None
    return config.vision


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """Of 3 x 2 slices, all different."""
    levels = np.random.default_rng(0).integers(0, 256, (100, 160, 3), dtype=np.uint8)
    return Image.fromarray(levels)


def _cut(picture: Image.Image, cut: Cut) -> Images:
    return Images(tuple(map(normalise, cut_picture(picture, cut))), cut.grid)


def _exchanged(picture: Image.Image, vision: VisionConfig, _: Images) -> Images:
    cut = plan_cut(picture.size, vision)
    assert cut.grid is not None
    return _cut(picture, replace(cut, grid=cut.grid[::-1]))


def _fewer(picture: Image.Image, vision: VisionConfig, _: Images) -> Images:
    return _cut(picture, replace(plan_cut(picture.size, vision), grid=(2, 2)))


def _whole(picture: Image.Image, vision: VisionConfig, _: Images) -> Images:
    return _cut(picture, replace(plan_cut(picture.size, vision), grid=None))


def _narrow(picture: Image.Image, vision: VisionConfig, _: Images) -> Images:
    return _cut(picture, replace(plan_cut(picture.size, vision), cell=(56, 42)))


def _columns_first(picture: Image.Image, vision: VisionConfig, right: Images) -> Images:
    order = (0, 1, 4, 2, 5, 3, 6)
    return Images(tuple(right.pixels[i] for i in order), right.grid)


def _bilinear(picture: Image.Image, vision: VisionConfig, right: Images) -> Images:
    """In the slices only."""
    cut = plan_cut(picture.size, vision)
    refined = picture.resize(cut.refined, Image.Resampling.BILINEAR)
    pixels = [normalise(refined.crop(box)) for box in cut.boxes]
    return Images((right.pixels[0], *pixels), right.grid)


def _one_pixel(picture: Image.Image, vision: VisionConfig, right: Images) -> Images:
    last = right.pixels[-1].clone()
    last[0, 1, 2, 3] += 1
    return Images((*right.pixels[:-1], last), right.grid)


def _cause(picture: Image.Image, vision: VisionConfig, actual: Images) -> Cause | None:
    return picture_cause(picture, vision, images_of(picture, vision), actual, 0.5, 60)


def test_right_images_have_no_cause(picture: Image.Image, vision: VisionConfig) -> None:
    right = images_of(picture, vision)
    assert right.grid == (3, 2)
    again = Images(tuple(pixels.clone() for pixels in right.pixels), right.grid)
    assert _cause(picture, vision, again) is None


@pytest.mark.parametrize(
    ("fault", "where", "why"),
    [
        (_exchanged, "cut", "2 x 3 slices, columns and rows exchanged: the reference has 3 x 2"),
        (_fewer, "cut", "2 x 2 slices, the reference has 3 x 2"),
        (_whole, "cut", "makes one image of a picture that has 3 x 2 slices"),
        (_narrow, "cut", "the slice in row 1, column 1 has 56 x 42 pixels, the reference's"),
        (_columns_first, "cut", "slices in column order, not row by row"),
        (_bilinear, "preprocessing", "equals a bilinear resize exactly"),
        (_bilinear, "preprocessing", "(slice in row 1, column 1)"),
        (
            _one_pixel,
            "preprocessing",
            "at row 2, column 3 by 128 of 255 (slice in row 2, column 3)",
        ),
    ],
)
def test_a_fault_is_named(
    fault: Fault, where: str, why: str, picture: Image.Image, vision: VisionConfig
) -> None:
    actual = fault(picture, vision, images_of(picture, vision))
    cause = _cause(picture, vision, actual)
    assert cause is not None and cause.where == where
    assert why in cause.why


def test_slices_of_a_picture_that_is_one_image(picture: Image.Image, vision: VisionConfig) -> None:
    small = picture.resize((56, 56))
    cut = plan_cut(small.size, vision)
    actual = _cut(small, replace(cut, grid=(2, 1)))
    cause = _cause(small, vision, actual)
    assert cause is not None
    assert cause.why == "cuts 2 x 1 slices from a picture that is one image"


def test_the_overview_behind_the_slices(vision: VisionConfig) -> None:
    """Its place shows where overview and slices have one shape."""
    levels = np.random.default_rng(1).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    picture = Image.fromarray(levels)
    right = images_of(picture, vision)
    assert right.grid == (2, 2)
    assert len({tuple(pixels.shape) for pixels in right.pixels}) == 1
    actual = Images((*right.pixels[1:], right.pixels[0]), right.grid)
    cause = _cause(picture, vision, actual)
    assert cause is not None
    assert (cause.where, cause.why) == ("cut", "the overview behind the slices")
