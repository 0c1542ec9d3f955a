"""A picture's way to its image tokens: the cut, its pixels, the vision encoder, the resampler.

Each stage gets the reference's own input, and each image of a picture goes through on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

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
    each = []
    for i, pixels in enumerate(zip(*(images.pixels for images in cuts), strict=True)):
        name = partial(_of_image, index=i) if cuts_pictures else str
        own = [one[0] for one in pixels]
        if equal:
            levels = metrics.max_difference(own[0], own[BUNDLE]) * LEVELS
            limit = worst.thresholds["preprocessing_levels"]
            metric = "max difference"
            worst.add(Check(PIXELS, name("pixels"), metric, "of 255", levels, 0, limit, False))
        steps.of_images(len(right.pixels))
        each.append(_compare_image(everyone, own, name, worst, steps))
    return EncodedPicture(right.grid, tuple(zip(*each, strict=True)))


def _of_image(part: str, index: int) -> str:
    return f"{part}, {'slices' if index else 'overview'}"


def _compare_image(
    everyone: Sequence[Stages],
    pixels: Sequence[Tensor],
    name: Callable[[str], str],
    worst: StageLosses,
    steps: Steps,
) -> tuple[Tensor, ...]:
    """Compares the stages of one image; returns each model's own image tokens (Q, D).

    Args:
        everyone: see `compare_picture`.
        pixels: (3, height, width) as each of them cut the image.
        name: names a part of this image.
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
    worst.loss("vision features", name("whole encoder"), *features)
    outputs = [stages.resample(features[0], shape) for stages in everyone]
    worst.loss("resampler", name("from features"), *outputs)
    tokens = [outputs[0], *(s.resample(f, shape) for s, f in zip(others, own, strict=True))]
    worst.loss("resampler", name("image tokens"), *tokens)
    return tuple(tokens)
