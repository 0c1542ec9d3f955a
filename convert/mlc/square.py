"""The images of a model with slices, as MLC-LLM can take them: each in one square.

MLC-LLM's engine views every picture as `image_size` x `image_size` pixels, and counts the same
number of tokens for each, so a library has one shape. It takes several pictures in one message. So
the overview and the slices of MiniCPM-V 2.0 can all be given, each scaled to the square of about
their area, with the positions that the model has for this square.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from convert.checkpoint.config import ModelConfig, VisionConfig
from convert.checkpoint.positions import sincos_grid
from convert.checkpoint.tensor_tables import Rule, Table, bundle_rules
from convert.checkpoint.transforms import resample_positions, third
from runtime.inputs.picture import normalise
from runtime.inputs.prompt import IMAGE_END, IMAGE_START
from runtime.inputs.slices import Grid, Images, cut_picture, images_of, plan_cut

# Of a table with slices: what makes the keys' positions of any shape.
_ANY_SHAPE = ("resampler.key_column_proj.weight", "resampler.key_row_proj.weight")


def square_side(vision: VisionConfig) -> int:
    """Returns the side in pixels of the square that each image is scaled to.

    Of a model with slices it is what the model makes of a picture that is a square.
    """
    if vision.slices is None:
        return vision.image_size
    side = vision.slices.scale_resolution
    return plan_cut((side, side), vision).overview[0]


def cut_square(config: ModelConfig) -> int | None:
    """Returns the side of the square for a model that cuts pictures; None for another one."""
    vision = config.vision
    return None if vision is None or vision.slices is None else square_side(vision)


def one_shape(side: int) -> str:
    """Says what becomes of the images of a model with slices."""
    return (
        f"the overview and each slice become {side} x {side} pixels, whatever their shape: MLC-LLM "
        "takes images of one size"
    )


def square_images(picture: Image.Image, vision: VisionConfig) -> Images:
    """Returns a picture's images as an app has to make them: cut as the model does, and square."""
    if vision.slices is None:
        return images_of(picture, vision)
    cut, side = plan_cut(picture.size, vision), square_side(vision)
    square = replace(cut, overview=(side, side), cell=(side, side))
    return Images(tuple(map(normalise, cut_picture(picture, square))), cut.grid)


def message_parts(grid: Grid | None, tags: tuple[str, str] = ("", "")) -> list[str]:
    """Returns the texts around the images of a message, the last one to stand before the question.

    Args:
        grid: columns and rows of slices; None: the overview is all.
        tags: what stands before and behind all slices.
    """
    if grid is None:
        return [IMAGE_START, f"{IMAGE_END}\n"]
    (start, end), (columns, rows) = tags, grid
    row = [IMAGE_END + IMAGE_START] * (columns - 1)
    between = [*row, *[f"{IMAGE_END}\n{IMAGE_START}", *row] * (rows - 1)]
    return [IMAGE_START, f"{IMAGE_END}{start}{IMAGE_START}", *between, f"{IMAGE_END}{end}\n"]


def square_rules(config: ModelConfig, untied_head: bool) -> Table:
    """Makes a bundle's tensors, with finished positions of the square also for slices."""
    rules = bundle_rules(config, untied_head)
    vision, resampler = config.vision, config.resampler
    if vision is None or resampler is None or vision.slices is None:
        return rules
    grid = square_side(vision) // vision.patch_size
    finished = {
        "vision.pos_embed": Rule(
            "vision.pos_embed",
            ("vpm.pos_embed",),
            (grid**2, vision.embed_dim),
            partial(resample_positions, grid=grid),
        ),
        "resampler.k_proj.bias": Rule(
            "resampler.key_positions",
            ("resampler.attn.in_proj_weight", "resampler.attn.in_proj_bias"),
            (grid**2, resampler.embed_dim),
            partial(_key_positions, grid=grid),
        ),
    }
    kept = [rule for rule in rules if not isinstance(rule, Rule) or rule.name not in _ANY_SHAPE]
    return tuple(finished.get(rule.name, rule) if isinstance(rule, Rule) else rule for rule in kept)


def _key_positions(in_weight: Tensor, in_bias: Tensor, *, grid: int) -> Tensor:
    """Computes what positions and bias add to the resampler's keys: (grid * grid, E).

    In float64, rounded to float32.
    """
    weight, bias = third(in_weight, index=1), third(in_bias, index=1)
    positions = sincos_grid(weight.shape[1], grid, grid).double()
    return F.linear(positions, weight.double(), bias.double()).float()
