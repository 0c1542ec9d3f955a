"""Runs the exported ONNX model in onnxruntime and compares it with the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from convert.bundle.errors import BundleError
from convert.checkpoint.config import VisionConfig
from convert.onnx.graph import FEATURES, INPUT, TOKENS
from runtime.reference.model import MiniCPMV


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference of an output from the reference's."""

    output: str
    size: tuple[int, int]  # of the images; width and height, pixels
    max_abs: float
    scale: float  # largest magnitude in the reference's output

    @property
    def relative(self) -> float:
        """The largest difference, relative to the output's scale."""
        return self.max_abs / self.scale


def sample_sizes(c: VisionConfig) -> list[tuple[int, int]]:
    """Returns the sizes (width, height) of images to compare on: the square, or several shapes."""
    if c.slices is None:
        return [(c.image_size, c.image_size)]
    side = max(c.slices.scale_resolution // c.patch_size, 4)
    wide, half = side * 8 // 7, side // 2
    # A single patch, a long and a high image, and one as large as a slice of a 4:3 picture.
    grids = [(1, 1), (half, side // 4), (side // 4, half), (wide, side * side // wide)]
    return [(columns * c.patch_size, rows * c.patch_size) for columns, rows in grids]


def sample_pixels(size: tuple[int, int], count: int = 2) -> Tensor:
    """Returns normalised pixels (count, 3, height, width): colour ramps with noise, a fixed seed's.

    Args:
        size: width and height.
        count: of images.
    """
    width, height = size
    generator = torch.Generator().manual_seed(0)
    slopes = torch.rand(count, 3, 2, 1, 1, generator=generator) * 2 - 1
    across, down = torch.linspace(-1, 1, width), torch.linspace(-1, 1, height).unsqueeze(1)
    smooth = slopes[:, :, 0] * across + slopes[:, :, 1] * down
    noise = torch.randn(count, 3, height, width, generator=generator)
    return (smooth + 0.1 * noise).clamp(-1, 1)


def compare_onnx(
    path: Path, model: MiniCPMV, images: Sequence[Tensor], *, threads: int = 0
) -> list[Difference]:
    """Runs `vision.onnx` and the reference on the same images.

    Args:
        path: the graph, with its data file in the same folder.
        model: the reference, float32 on the CPU.
        images: each several of one size, (B, 3, height, width) float32, normalised.
        threads: of onnxruntime; 0: its own choice.

    Raises:
        BundleError: the files are missing, damaged or not ours.
    """
    assert model.vpm is not None and model.resampler is not None, "a decoder-only model"
    differences = []
    for pixels, outputs in zip(images, run_onnx(path, images, threads=threads), strict=True):
        height, width = pixels.shape[2:]
        grid = height // model.vpm.patch_size, width // model.vpm.patch_size
        with torch.inference_mode():
            features = model.vpm(pixels)
            expected = features, model.resampler(features, grid)
        for name, wanted, actual in zip((FEATURES, TOKENS), expected, outputs, strict=True):
            differences.append(
                Difference(
                    output=name,
                    size=(width, height),
                    max_abs=float((actual - wanted).abs().max()),
                    scale=float(wanted.abs().max()),
                )
            )
    return differences


def worst(differences: Sequence[Difference]) -> list[Difference]:
    """Returns the largest difference of each output, relative to its scale."""
    outputs = {difference.output: difference for difference in differences}
    return [
        max((d for d in differences if d.output == name), key=lambda d: d.relative)
        for name in outputs
    ]


def run_onnx(
    path: Path, images: Sequence[Tensor], *, threads: int = 0
) -> list[tuple[Tensor, Tensor]]:
    """Returns features (B, P, D) and image tokens (B, Q, E) of images (B, 3, height, width)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are raised as exceptions and need no log line
    found = []
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for pixels in images:
            outputs = session.run([FEATURES, TOKENS], {INPUT: pixels.numpy()})
            features, tokens = (torch.from_numpy(np.asarray(output)) for output in outputs)
            found.append((features, tokens))
    # onnxruntime's exceptions have no common base class.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise BundleError(f"{path}: onnxruntime cannot run it: {reason}") from error
    return found
