"""Larger pictures for models that cut them into slices.

The built-in pictures have about the pixels of one image, and would never be cut. Pictures of users
are, mostly into as many slices as the model allows. So some of the built-in ones are enlarged: the
decoder then sees the prompt of slices, and the tokens of many images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from PIL import Image

from convert.calibrate.samples import CalibrationSample
from convert.checkpoint.config import SliceConfig, VisionConfig

# One picture of so many: of the 47 eight, with the pixels of two to nine slices. One of nine is ten
# images with 664 tokens. This share adds 17 % to the operations of a calibration at full size; a
# third of the pictures would add 34 %.
_EVERY = 6


def with_slices(
    samples: Sequence[CalibrationSample], vision: VisionConfig | None
) -> list[CalibrationSample]:
    """Returns samples, with some pictures as large as two, three, … slices where they are cut.

    Args:
        samples: those of one picture follow each other.
        vision: of the model.
    """
    slices = None if vision is None else vision.slices
    if slices is None or slices.max_slice_nums == 1:
        return list(samples)
    digests = list(dict.fromkeys(s.picture_digest for s in samples if s.picture is not None))
    counts = {
        digest: 2 + i % (slices.max_slice_nums - 1) for i, digest in enumerate(digests[::_EVERY])
    }
    return [
        _enlarged(sample, sample.picture, counts[sample.picture_digest], slices)
        if sample.picture is not None and sample.picture_digest in counts
        else sample
        for sample in samples
    ]


def _enlarged(
    sample: CalibrationSample,
    picture: Callable[[], Image.Image],
    count: int,
    slices: SliceConfig,
) -> CalibrationSample:
    pixels = round((count - 0.5) * slices.scale_resolution**2)
    return replace(
        sample,
        picture=partial(_resized, picture, pixels),
        picture_digest=f"{sample.picture_digest} of {pixels} pixels",
    )


def _resized(picture: Callable[[], Image.Image], pixels: int) -> Image.Image:
    """Returns a picture with about so many pixels, in its own shape."""
    small = picture()
    factor = math.sqrt(pixels / (small.width * small.height))
    size = round(small.width * factor), round(small.height * factor)
    return small.resize(size, Image.Resampling.BICUBIC)
