"""What an engine does to a picture instead of what it should."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from convert.checkpoint.config import VisionConfig
from runtime.inputs.slices import Box, Grid, Images, Size, plan_cut
from runtime.reference import metrics
from runtime.verify.check import Cause
from runtime.verify.measure.pictures import CUT, LEVELS, PIXELS, same_cut

_FILTERS = {
    "a bilinear resize": Image.Resampling.BILINEAR,
    "a nearest-neighbour resize": Image.Resampling.NEAREST,
    "a box filter's resize": Image.Resampling.BOX,
    "a Hamming filter's resize": Image.Resampling.HAMMING,
    "a Lanczos resize": Image.Resampling.LANCZOS,
}
# Mean and standard deviation of red, green and blue, from 0 to 1.
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def picture_cause(
    picture: Image.Image,
    vision: VisionConfig,
    right: Images,
    actual: Images,
    limit: float,
    least_db: float,
) -> Cause | None:
    """Says which known mistake gives an engine's images; None where they are right.

    Args:
        picture: what both were given.
        vision: the geometry.
        right: the reference's images.
        actual: the engine's.
        limit: largest difference of a right pixel, of 255.
        least_db: from this SQNR on, two outputs count as equal.
    """
    if not same_cut(right, actual):
        return Cause(CUT, _cut_mistake(right, actual))
    pairs = list(zip(right.pixels, actual.pixels, strict=True))
    wrong = [i for i, pair in enumerate(pairs) if not _levels(*pair) <= limit]
    if not wrong:
        return None
    if right.grid is not None and (order := _other_order(right, actual, limit)):
        return Cause(CUT, order)
    index = wrong[0]
    one, other = (pixels[0] for pixels in pairs[index])
    source = _Resized(picture, (one.shape[2], one.shape[1]), None)
    if index:
        cut = plan_cut(picture.size, vision)
        source = _Resized(picture, cut.refined, cut.boxes[index - 1])
    cause = _preprocessing_cause(source, one, other, least_db)
    where = "" if right.grid is None else f" ({image_place(index, right.grid)})"
    return Cause(PIXELS, f"{cause}{where}")


def image_place(index: int, grid: Grid) -> str:
    """Names an image of a picture."""
    if not index:
        return "overview"
    row, column = divmod(index - 1, grid[0])
    return f"slice in row {row + 1}, column {column + 1}"


@dataclass(frozen=True)
class _Resized:
    """An image's part of the picture that was resized for it."""

    picture: Image.Image
    size: Size  # that the picture is resized to
    box: Box | None  # of the image in that; None: all

    def resize(self, kind: Image.Resampling) -> Tensor:
        """Returns the pixels by another filter, normalised (3, height, width)."""
        return _normalised(self.picture.resize(self.size, kind).crop(self._box))

    def crop(self, pixels: Tensor) -> Tensor:
        """Returns the image's part of the whole resized picture's pixels (3, height, width)."""
        left, top, right, bottom = self._box
        return pixels[:, top:bottom, left:right]

    @property
    def _box(self) -> Box:
        return (0, 0, *self.size) if self.box is None else self.box


def _levels(right: Tensor, actual: Tensor) -> float:
    return metrics.max_difference(right, actual) * LEVELS


def _cut_mistake(right: Images, actual: Images) -> str:
    """Says how a cut differs from the right one."""
    mine, theirs = actual.grid, right.grid
    if mine == theirs:
        pairs = zip(right.pixels, actual.pixels, strict=True)
        differ = [i for i, (one, other) in enumerate(pairs) if one.shape != other.shape]
        one, other = (images.pixels[differ[0]] for images in (right, actual))
        place = "overview" if theirs is None else image_place(differ[0], theirs)
        return f"the {place} has {_size(other)} pixels, the reference's {_size(one)}"
    if theirs is None:
        return f"cuts {_grid(mine)} slices from a picture that is one image"
    if mine is None:
        return f"makes one image of a picture that has {_grid(theirs)} slices"
    if mine == theirs[::-1]:
        return (
            f"{_grid(mine)} slices, columns and rows exchanged: the reference has {_grid(theirs)}"
        )
    return f"{_grid(mine)} slices, the reference has {_grid(theirs)}"


def _other_order(right: Images, actual: Images, limit: float) -> str | None:
    """Says in which other order the right images come, if that is the mistake."""
    assert right.grid is not None
    columns, rows = right.grid
    slices = right.pixels[1:]
    orders = {
        "slices in column order, not row by row": [
            0,
            *(1 + row * columns + column for column in range(columns) for row in range(rows)),
        ],
        "the overview behind the slices": [*range(1, len(right.pixels)), 0],
        "slices in reverse order": [0, *range(len(slices), 0, -1)],
    }
    for text, order in orders.items():
        moved = [right.pixels[i] for i in order]
        pairs = list(zip(moved, actual.pixels, strict=True))
        if all(one.shape == other.shape and _levels(one, other) <= limit for one, other in pairs):
            return text
    return None


def _grid(grid: Grid | None) -> str:
    return "no" if grid is None else f"{grid[0]} x {grid[1]}"


def _size(pixels: Tensor) -> str:
    return f"{pixels.shape[-1]} x {pixels.shape[-2]}"


def _preprocessing_cause(source: _Resized, right: Tensor, actual: Tensor, least_db: float) -> str:
    """Says which known mistake gives an image's pixels (3, height, width)."""
    db, name = max(
        (metrics.sqnr_db(pixels, actual), name) for name, pixels in _mistakes(source, right)
    )
    own = metrics.sqnr_db(right, actual)
    if db >= least_db and db > own:
        figure = "exactly" if db == float("inf") else f"to {db:.0f} dB"
        return f"equals {name} {figure}; the reference's pixels to {own:.0f} dB"
    difference = (right - actual).abs().amax(0)
    y, x = divmod(int(difference.argmax()), difference.shape[1])
    count = int((difference * LEVELS > 1).sum())
    return (
        f"no known mistake: {count:,} of {difference.numel():,} pixels differ, that at row "
        f"{y}, column {x} by {float(difference.max()) * LEVELS:.0f} of 255"
    )


def _mistakes(source: _Resized, right: Tensor) -> Iterator[tuple[str, Tensor]]:
    picture, (width, height) = source.picture, source.size
    for name, kind in _FILTERS.items():
        yield name, source.resize(kind)
    whole = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float().unsqueeze(0)
    for name in ("bicubic", "bilinear"):
        pixels = F.interpolate(whole, (height, width), mode=name, align_corners=False)[0]
        pixels = pixels.round().clamp(0, 255) / 255
        yield f"a {name} resize without antialiasing", source.crop((pixels - 0.5) / 0.5)
    if source.box is None and width == height:
        side = min(picture.size)
        left, top = ((length - side) // 2 for length in picture.size)
        square = picture.crop((left, top, left + side, top + side))
        resized = square.resize(source.size, Image.Resampling.BICUBIC)
        yield "the middle square, cut out", _normalised(resized)
    yield "blue and red exchanged", right.flip(0)
    if width == height:
        yield "rows and columns exchanged", right.mT
    yield "a picture upside down", right.flip(1)
    yield "a mirrored picture", right.flip(2)
    zero_to_one = right * 0.5 + 0.5
    yield "pixels from 0 to 1, not normalised", zero_to_one
    yield "pixels from 0 to 255, not normalised", zero_to_one * 255
    for name, (mean, deviation) in (("CLIP's", _CLIP), ("ImageNet's", _IMAGENET)):
        m, d = (torch.tensor(values).view(3, 1, 1) for values in (mean, deviation))
        yield f"pixels normalised with {name} mean and deviation", (zero_to_one - m) / d


def _normalised(picture: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
    return (pixels - 0.5) / 0.5
