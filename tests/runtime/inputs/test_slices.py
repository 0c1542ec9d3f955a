"""How pictures are cut. `test_golden_slices.py` compares pixels with the original's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from convert.checkpoint.config import CONFIGS, ModelConfig, VisionConfig
from quantize.errors import ConfigError
from runtime.inputs.picture import preprocess
from runtime.inputs.picture_format import PictureError
from runtime.inputs.slices import Cut, cut_picture, images_of, limit_slices, plan_cut


def _vision(**slices: int) -> VisionConfig:
    vision = ModelConfig.load(CONFIGS / "model" / "minicpm-v-2.0.json").vision
    assert vision is not None and vision.slices is not None
    return replace(vision, slices=replace(vision.slices, **slices))


# From the facts of the model: sizes, tokens with all tags.
KNOWN = {
    (4000, 3000): (Cut((518, 392), (3, 3), (518, 392)), 664),
    (1920, 1080): (Cut((602, 336), (4, 2), (420, 476)), 597),
    (640, 480): (Cut((518, 392), (2, 1), (364, 546)), 200),
    (448, 448): (Cut((448, 448), None, (448, 448)), 66),
    (449, 448): (Cut((448, 448), (2, 1), (322, 630)), 200),
    (1, 1): (Cut((448, 448), None, (448, 448)), 66),
}


@pytest.mark.parametrize("size", KNOWN)
def test_known_cuts(size: tuple[int, int]) -> None:
    cut, tokens = KNOWN[size]
    assert plan_cut(size, _vision()) == cut
    columns, rows = cut.grid or (0, 0)
    tags = 2 + rows - 1 if cut.grid else 0  # of all slices, and the newlines between rows
    assert 66 * (1 + columns * rows) + tags == tokens


@pytest.mark.parametrize("most", [1, 2, 3, 5])
def test_fewer_slices(most: int) -> None:
    """The limit changes the number of slices, one is none."""
    cut = plan_cut((4000, 3000), _vision(max_slice_nums=most))
    count = 0 if cut.grid is None else cut.grid[0] * cut.grid[1]
    assert count <= most
    assert (cut.grid is None) == (most == 1)
    assert cut.overview == (518, 392)


@pytest.mark.parametrize("most", [1, 4, 9])
def test_a_limit_of_slices(most: int) -> None:
    assert limit_slices(_vision(), most) == _vision(max_slice_nums=most)
    assert limit_slices(_vision(), None) == _vision()
    assert limit_slices(None, None) is None


def test_limits_of_slices_that_are_refused() -> None:
    for limit in (0, -1, 10, True, 2.0, "2"):
        with pytest.raises(ConfigError, match=f"max_slices is {limit!r}.*overview only.* to 9"):
            limit_slices(_vision(), limit)  # type: ignore[arg-type]
    square = replace(_vision(), slices=None)
    with pytest.raises(ConfigError, match=r"max_slices is 3.*one square: leave it out"):
        limit_slices(square, 3)
    with pytest.raises(ConfigError, match=r"max_slices is 1.*takes no pictures: leave it out"):
        limit_slices(None, 1)


def test_every_image_is_whole_patches_of_a_bounded_number() -> None:
    vision = _vision()
    for width in (1, 7, 14, 100, 448, 449, 1000, 2047, 4000):
        for height in (1, 13, 60, 448, 451, 999, 4000):
            cut = plan_cut((width, height), vision)
            for size in (cut.overview, cut.cell):
                assert size[0] % 14 == size[1] % 14 == 0
                assert 0 < size[0] * size[1] // 14**2 <= 2048


@pytest.mark.parametrize("size", [(1, 100_000), (100_000, 1), (2, 30_000), (7, 200_000)])
def test_pictures_without_a_middle_are_refused(size: tuple[int, int]) -> None:
    """A side of less than half a patch becomes a patch, so the other one makes thousands."""
    with pytest.raises(PictureError, match=r"long and narrow.* patches, of which 2,048 .*cut"):
        plan_cut(size, _vision())


def test_slices_stand_row_by_row() -> None:
    """Colours tell the cells of a picture of 3 columns and 2 rows."""
    levels = np.zeros((1000, 1500, 3), np.uint8)
    for row in range(2):
        for column in range(3):
            levels[500 * row : 500 * (row + 1), 500 * column : 500 * (column + 1)] = 40 * (
                1 + 3 * row + column
            )
    picture = Image.fromarray(levels)
    cut = plan_cut(picture.size, _vision(max_slice_nums=6))
    assert cut.grid == (3, 2)
    overview, *slices = cut_picture(picture, cut)
    assert overview.size == cut.overview
    assert {image.size for image in slices} == {cut.cell}
    middles = [image.getpixel((cut.cell[0] // 2, cut.cell[1] // 2)) for image in slices]
    assert middles == [(level, level, level) for level in range(40, 241, 40)]


def test_a_transparent_picture_is_cut_on_white() -> None:
    images = images_of(Image.new("RGBA", (900, 500)), _vision())
    assert images.grid is not None
    assert all(bool((pixels == 1).all()) for pixels in images.pixels)


def test_a_model_without_slices_gets_one_square() -> None:
    vision = ModelConfig.load(CONFIGS / "demo" / "config.json").vision
    assert vision is not None
    picture = Image.linear_gradient("L").resize((700, 500))
    images = images_of(picture, vision)
    assert images.grid is None
    (pixels,) = images.pixels
    assert torch.equal(pixels, preprocess(picture, vision.image_size))
