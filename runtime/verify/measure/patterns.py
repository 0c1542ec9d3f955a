"""Synthetic patterns through the stages of pictures: what drawn scenes and photographs rarely have.

A plane of one value makes all patches alike, a checkerboard makes neighbours as unlike as they can
be, a ramp holds every level, a bright patch stands alone. An engine that saturates, mixes up rows
and columns or loses a border shows it here. No question is asked about them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from convert.checkpoint.config import VisionConfig
from runtime.verify.check import Check
from runtime.verify.measure.losses import StageLosses
from runtime.verify.measure.steps import Steps
from runtime.verify.stages import Stages, shape_of

STAGE = "synthetic patterns"
PATTERNS = (
    *("black", "white", "checkerboard"),
    *("ramp from the left", "ramp from the top", "one bright patch"),
)


def pattern_side(vision: VisionConfig) -> int:
    """Returns the side of a pattern, pixels: that of a picture which is one image, unresized."""
    return vision.image_size if vision.slices is None else vision.slices.scale_resolution


def draw_pattern(name: str, vision: VisionConfig) -> Image.Image:
    """Returns a picture that is one image, unresized; the name is one of `PATTERNS`."""
    size, patch = pattern_side(vision), vision.patch_size
    y, x = np.indices((size, size))
    ramp = np.linspace(0, 255, size).round()
    middle = size // 2 // patch * patch
    inside = (slice(middle, middle + patch),) * 2
    bright = np.zeros((size, size))
    bright[inside] = 255
    planes = {
        "black": np.zeros((size, size)),
        "white": np.full((size, size), 255),
        "checkerboard": (x // patch + y // patch) % 2 * 255,
        "ramp from the left": np.broadcast_to(ramp, (size, size)),
        "ramp from the top": np.broadcast_to(ramp[:, None], (size, size)),
        "one bright patch": bright,
    }
    return Image.fromarray(planes[name].astype(np.uint8)).convert("RGB")


def compare_patterns(
    everyone: Sequence[Stages], thresholds: Mapping[str, float], steps: Steps
) -> list[Check]:
    """Compares the stages of pictures, each with the reference's own input.

    Args:
        everyone: reference, arithmetic and bundle.
        thresholds: of `configs/verify.json`.
        steps: counts the blocks.

    Returns:
        The figures, named after pattern and stage.
    """
    reference, losses = everyone[0], StageLosses(thresholds)
    vision = reference.config.vision
    assert vision is not None
    for name in PATTERNS:
        pixels = reference.images(draw_pattern(name, vision)).pixels[0][0]
        shape = shape_of(pixels, reference.config)
        outputs = [stages.vision_embed(pixels) for stages in everyone]
        losses.loss(STAGE, f"{name}, patch embedding", *outputs)
        for i in range(vision.depth):
            x = outputs[0]
            outputs = [stages.vision_block(i, x) for stages in everyone]
            losses.loss(STAGE, f"{name}, block {i}", *outputs)
            steps.block()
        x = outputs[0]
        outputs = [stages.vision_norm(x) for stages in everyone]
        losses.loss(STAGE, f"{name}, norm", *outputs)
        x = outputs[0]
        outputs = [stages.resample(x, shape) for stages in everyone]
        losses.loss(STAGE, f"{name}, resampler", *outputs)
    return losses.checks()
