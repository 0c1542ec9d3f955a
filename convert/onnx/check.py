"""Runs the exported ONNX model in onnxruntime and compares it with the reference."""

from __future__ import annotations

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
    max_abs: float
    scale: float  # largest magnitude in the reference's output

    @property
    def relative(self) -> float:
        """The largest difference, relative to the output's scale."""
        return self.max_abs / self.scale


def sample_pixels(c: VisionConfig, count: int = 2) -> Tensor:
    """Returns normalised pixels (count, 3, S, S): colour ramps with noise, from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(-1, 1, c.image_size)
    slopes = torch.rand(count, 3, 2, 1, 1, generator=generator) * 2 - 1
    smooth = slopes[:, :, 0] * ramp + slopes[:, :, 1] * ramp.unsqueeze(1)
    noise = torch.randn(count, 3, c.image_size, c.image_size, generator=generator)
    return (smooth + 0.1 * noise).clamp(-1, 1)


def compare_onnx(
    path: Path, model: MiniCPMV, pixels: Tensor, *, threads: int = 0
) -> list[Difference]:
    """Runs `vision.onnx` and the reference on the same pixels.

    Args:
        path: the graph, with its data file in the same folder.
        model: the reference, float32 on the CPU.
        pixels: (B, 3, S, S) float32, normalised.
        threads: of onnxruntime; 0: its own choice.

    Raises:
        BundleError: the files are missing, damaged or not ours.
    """
    features, tokens = run_onnx(path, pixels, threads=threads)
    assert model.vpm is not None and model.resampler is not None, "a decoder-only model"
    with torch.inference_mode():
        expected = model.vpm(pixels)
        pairs = {FEATURES: (features, expected), TOKENS: (tokens, model.resampler(expected))}
    return [
        Difference(
            output=name,
            max_abs=float((actual - expected).abs().max()),
            scale=float(expected.abs().max()),
        )
        for name, (actual, expected) in pairs.items()
    ]


def run_onnx(path: Path, pixels: Tensor, *, threads: int = 0) -> tuple[Tensor, Tensor]:
    """Returns features (B, P, D) and image tokens (B, Q, E) of normalised pixels (B, 3, S, S)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are raised as exceptions and need no log line
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        outputs = session.run([FEATURES, TOKENS], {INPUT: pixels.numpy()})
    # onnxruntime's exceptions have no common base class.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise BundleError(f"{path}: onnxruntime cannot run it: {reason}") from error
    features, tokens = (torch.from_numpy(np.asarray(output)) for output in outputs)
    return features, tokens
