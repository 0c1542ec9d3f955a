"""Which images the vision encoder gets of a picture: one square, or an overview and slices."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from PIL import Image

from convert.checkpoint.config import SliceConfig, VisionConfig
from quantize.errors import ConfigError
from runtime.inputs.picture import normalise, preprocess, resize
from runtime.inputs.picture_format import PictureError
from runtime.inputs.picture_modes import to_rgb

if TYPE_CHECKING:
    from torch import Tensor

Size = tuple[int, int]  # width, height, pixels
Grid = tuple[int, int]  # columns and rows of slices
Box = tuple[int, int, int, int]  # left, top, right, bottom, pixels


@dataclass(frozen=True)
class Cut:
    """How a picture is cut."""

    overview: Size  # of the whole picture
    grid: Grid | None  # None: the overview is all
    cell: Size  # of one slice; the overview's where there are none

    @property
    def sizes(self) -> list[Size]:
        """The size of each image."""
        slices = 0 if self.grid is None else self.grid[0] * self.grid[1]
        return [self.overview, *[self.cell] * slices]

    @property
    def refined(self) -> Size:
        """What the picture is resized to before it is cut into slices."""
        assert self.grid is not None, "no slices"
        return self.grid[0] * self.cell[0], self.grid[1] * self.cell[1]

    @property
    def boxes(self) -> list[Box]:
        """The slices in the refined picture, row by row."""
        (width, height), (whole, tall) = self.cell, self.refined
        return [
            (x, y, x + width, y + height)
            for y in range(0, tall, height)
            for x in range(0, whole, width)
        ]


@dataclass(frozen=True)
class Images:
    """What the vision encoder gets of a picture."""

    pixels: tuple[Tensor, ...]  # each (1, 3, height, width) float32: the overview, then slices
    grid: Grid | None  # of the slices; None without


def limit_slices(vision: VisionConfig | None, max_slices: int | None) -> VisionConfig | None:
    """Returns the geometry with another limit of slices: fewer take less time and fewer tokens.

    Args:
        vision: the model's; None for a decoder without one.
        max_slices: 1 (the overview only) to the model's own limit; None: the model's own.

    Raises:
        ConfigError: the limit is out of range, or the model cuts no pictures.
    """
    if max_slices is None:
        return vision
    if vision is None or vision.slices is None:
        takes = "takes no pictures" if vision is None else "resizes every picture to one square"
        raise ConfigError(
            f"max_slices is {max_slices!r:.40}, which is for models that cut pictures into slices "
            f"(MiniCPM-V 2.0); this one {takes}: leave it out"
        )
    most = vision.slices.max_slice_nums
    if type(max_slices) is not int or not 1 <= max_slices <= most:
        raise ConfigError(
            f"max_slices is {max_slices!r:.40}; this model takes 1 (the overview only) to {most}"
        )
    return replace(vision, slices=replace(vision.slices, max_slice_nums=max_slices))


def images_of(picture: Image.Image, vision: VisionConfig) -> Images:
    """Cuts, resizes and normalises a picture as the model's geometry says.

    Raises:
        PictureError: the picture is too long and narrow to be cut.
    """
    if vision.slices is None:
        return Images((preprocess(picture, vision.image_size),), None)
    cut = plan_cut(picture.size, vision)
    return Images(tuple(map(normalise, cut_picture(picture, cut))), cut.grid)


def plan_cut(size: Size, vision: VisionConfig) -> Cut:
    """Chooses the grid and the sizes for a picture of a size.

    Source: MiniCPM-V 2.0 `slice_image`, whose float64 arithmetic it repeats.

    Raises:
        PictureError: the picture is too long and narrow.
    """
    slices, patch = vision.slices, vision.patch_size
    assert slices is not None, "pictures become squares"
    width, height = size
    side = slices.scale_resolution
    wanted = min(math.ceil(width * height / (side * side)), slices.max_slice_nums)
    # A picture that is cut has more pixels than the square, so its overview is always resized.
    overview = _image_size(width, height, side, patch)
    _check(size, overview, vision)
    if wanted <= 1:
        return Cut(overview, None, overview)
    columns, rows = grid = _best_grid(size, wanted, slices)
    # A cell's share of the picture, whose sides are first made multiples of the grid.
    cell = _image_size(
        _nearest(width, columns) / columns, _nearest(height, rows) / rows, side, patch
    )
    _check(size, cell, vision)
    return Cut(overview, grid, cell)


def cut_picture(picture: Image.Image, cut: Cut) -> list[Image.Image]:
    """Returns a picture's images: the overview, then the slices, row by row."""
    rgb = to_rgb(picture)
    images = [resize(rgb, cut.overview)]
    if cut.grid is not None:
        refined = resize(rgb, cut.refined)
        images += map(refined.crop, cut.boxes)
    return images


def _best_grid(size: Size, wanted: int, slices: SliceConfig) -> Grid:
    """Returns the columns and rows whose shape is nearest to the picture's; of equals the first."""
    shape = math.log(size[0] / size[1])
    grids = [
        (columns, count // columns)
        for count in (wanted - 1, wanted, wanted + 1)
        if 1 < count <= slices.max_slice_nums
        for columns in range(1, count + 1)
        if count % columns == 0
    ]
    return min(grids, key=lambda grid: abs(shape - math.log(grid[0] / grid[1])))


def _image_size(width: float, height: float, side: int, patch: int) -> Size:
    """Returns the size with the same shape, about the area of a square, and whole patches."""
    ratio = width / height
    scaled_height = int(side / math.sqrt(ratio))
    return _nearest(int(scaled_height * ratio), patch), _nearest(scaled_height, patch)


def _nearest(length: float, unit: int) -> int:
    """Rounds to a multiple of a unit, at least one; halves to the even multiple."""
    return max(round(length / unit) * unit, unit)


def _check(size: Size, image: Size, vision: VisionConfig) -> None:
    patches, most = image[0] * image[1] // vision.patch_size**2, vision.most_patches
    if patches > most:
        raise PictureError(
            f"{size[0]} x {size[1]} pixels are too long and narrow: an image of it would have "
            f"{patches:,} patches, of which {most:,} are encoded at most; cut the picture"
        )
