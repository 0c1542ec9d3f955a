"""A picture's way to its image tokens: the cut, its pixels, the vision encoder, the resampler.

Each stage gets the reference's own input, and each image of a picture goes through on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from PIL import Image
from torch import Tensor

from runtime.inputs.slices import Grid, Images
from runtime.reference import metrics
from runtime.verify.check import Check
from runtime.verify.measure.losses import StageLosses
from runtime.verify.measure.steps import Steps
from runtime.verify.stages import Stages, shape_of

CUT = "cut"
PIXELS = "preprocessing"
LEVELS = 127.5  # of 255 in a normalised pixel's unit, undoing (x - 0.5) / 0.5
BUNDLE = 2  # among all models: reference, arithmetic, bundle, others


@dataclass(frozen=True)
class EncodedPicture:
    """What the models make of a picture."""

    grid: Grid | None  # of slices
    images: tuple[tuple[Tensor, ...], ...]  # of each model: the images' tokens (Q, D)


def same_cut(one: Images, other: Images) -> bool:
    """Says whether two cuts of a picture have the same grid and images of the same sizes."""
    sizes = [[tuple(pixels.shape) for pixels in images.pixels] for images in (one, other)]
    return one.grid == other.grid and sizes[0] == sizes[1]


def compare_picture(
    everyone: Sequence[Stages], picture: Image.Image, worst: StageLosses, steps: Steps
) -> EncodedPicture:
    """Compares the stages up to the image tokens.

    Args:
        everyone: reference, arithmetic, bundle, and the reference in 16 bits if it runs.
        picture: that is asked about.
        worst: gets the figures, which are of the worst image.
        steps: counts the blocks.

    Returns:
        The results of each model's own stages, from the picture on.
    """
    cuts = [stages.images(picture) for stages in everyone]
    right, bundle = cuts[0], cuts[BUNDLE]
    equal = same_cut(right, bundle)
    vision = everyone[0].config.vision
    assert vision is not None
    cuts_pictures = vision.slices is not None
    if cuts_pictures:
        metric = "grid and sizes as the reference's"
        worst.add(Check(CUT, "images", metric, "", float(equal), 1, 1, True))
    if not equal:  # what it makes of the right images is compared
        cuts = [right] * len(cuts)
    steps.of_images(len(right.pixels))
    each: list[_Outputs] = []
    for i, pixels in enumerate(zip(*(images.pixels for images in cuts), strict=True)):
        own = [one[0] for one in pixels]
        if equal:
            levels = metrics.max_difference(own[0], own[BUNDLE]) * LEVELS
            limit = worst.thresholds["preprocessing_levels"]
            name, metric = f"pixels{_of_image(i) if cuts_pictures else ''}", "max difference"
            worst.add(Check(PIXELS, name, metric, "of 255", levels, 0, limit, False))
        each.append(_compare_image(everyone, own, worst, steps))
    for i, part in enumerate((each[:1], each[1:])):
        if part:
            _compare_whole(part, _of_image(i) if cuts_pictures else "", worst)
    return EncodedPicture(right.grid, tuple(zip(*(one.tokens for one in each), strict=True)))


def _of_image(index: int) -> str:
    return ", slices" if index else ", overview"


@dataclass(frozen=True)
class _Outputs:
    """What all models make of one image."""

    features: Sequence[Tensor]  # (P, Dv), each model's own from the picture on
    from_features: Sequence[Tensor]  # (Q, D) of the reference's features
    tokens: Sequence[Tensor]  # (Q, D), each model's own


def _compare_whole(images: Sequence[_Outputs], name: str, worst: StageLosses) -> None:
    """Compares the overview, or all slices together.

    A slice of one colour has patches that are all alike, and so are their errors: alone, it may
    lose more than the model of the arithmetic by chance.
    """

    def joined(outputs: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        return [torch.cat(rows) for rows in zip(*outputs, strict=True)]

    features, given, tokens = (
        joined([getattr(one, part.name) for one in images]) for part in fields(_Outputs)
    )
    worst.loss("vision features", f"whole encoder{name}", *features)
    worst.loss("resampler", f"from features{name}", *given)
    worst.loss("resampler", f"image tokens{name}", *tokens)


def _compare_image(
    everyone: Sequence[Stages], pixels: Sequence[Tensor], worst: StageLosses, steps: Steps
) -> _Outputs:
    """Compares the stages of the vision encoder for one image.

    Args:
        everyone: see `compare_picture`.
        pixels: (3, height, width) as each of them cut the image.
        worst: gets the figures.
        steps: counts the blocks.
    """
    reference, others = everyone[0], everyone[1:]
    shape = shape_of(pixels[0], reference.config)
    inside = [stages.vision_embed(pixels[0]) for stages in everyone]
    worst.loss("vision encoder", "patch embedding", *inside)
    # What the reference makes of its own inputs is computed once.
    own = [stages.vision_embed(p) for stages, p in zip(others, pixels[1:], strict=True)]
    x = inside[0]
    assert reference.config.vision is not None
    for i in range(reference.config.vision.depth):
        outputs = [stages.vision_block(i, x) for stages in everyone]
        worst.loss("vision encoder", f"block {i}", *outputs)
        own = [stages.vision_block(i, o) for stages, o in zip(others, own, strict=True)]
        x = outputs[0]
        steps.block()
    outputs = [stages.vision_norm(x) for stages in everyone]
    worst.loss("vision encoder", "norm", *outputs)
    own = [stages.vision_norm(o) for stages, o in zip(others, own, strict=True)]
    features = [outputs[0], *own]
    given = [stages.resample(features[0], shape) for stages in everyone]
    tokens = [given[0], *(s.resample(f, shape) for s, f in zip(others, own, strict=True))]
    return _Outputs(features, given, tokens)
