"""What an engine does to a picture instead of what it should."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from runtime.reference import metrics
from runtime.verify.check import Cause

_LEVELS = 127.5  # a normalised pixel's 2.0 are 255 levels
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


def preprocessing_cause(
    picture: Image.Image, right: Tensor, actual: Tensor, least_db: float
) -> Cause:
    """Says which known mistake gives an engine's pixels.

    Args:
        picture: what both were given.
        right: the reference's pixels (3, S, S).
        actual: the engine's.
        least_db: from this SQNR on, two outputs count as equal.
    """
    db, name = max(
        (metrics.sqnr_db(pixels, actual), name) for name, pixels in _mistakes(picture, right)
    )
    own = metrics.sqnr_db(right, actual)
    if db >= least_db and db > own:
        figure = "exactly" if db == float("inf") else f"to {db:.0f} dB"
        why = f"equals {name} {figure}; the reference's pixels to {own:.0f} dB"
    else:
        difference = (right - actual).abs().amax(0)
        y, x = divmod(int(difference.argmax()), difference.shape[1])
        count = int((difference * _LEVELS > 1).sum())
        why = (
            f"no known mistake: {count:,} of {difference.numel():,} pixels differ, that at row "
            f"{y}, column {x} by {float(difference.max()) * _LEVELS:.0f} of 255"
        )
    return Cause("preprocessing", why)


def _mistakes(picture: Image.Image, right: Tensor) -> Iterator[tuple[str, Tensor]]:
    size = right.shape[-1]
    for name, kind in _FILTERS.items():
        yield name, _normalised(picture.resize((size, size), kind))
    whole = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float().unsqueeze(0)
    for name in ("bicubic", "bilinear"):
        pixels = F.interpolate(whole, (size, size), mode=name, align_corners=False)[0]
        pixels = pixels.round().clamp(0, 255) / 255
        yield f"a {name} resize without antialiasing", (pixels - 0.5) / 0.5
    bicubic = Image.Resampling.BICUBIC
    side, (width, height) = min(picture.size), picture.size
    left, top = (width - side) // 2, (height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    yield "the middle square, cut out", _normalised(square.resize((size, size), bicubic))
    yield "blue and red exchanged", right.flip(0)
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
