"""Comparing numbers: random weights, and an assertion that says how far apart two arrays are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

Record = Callable[[str, object], None]  # pytest's `record_property`


def randomize(module: nn.Module, seed: int = 0) -> None:
    """Fills a module with weights of a trained model's sizes: no bias is 0, no norm weight 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                is_norm = "norm" in name or ".ln_" in f".{name}"
                parameter.copy_(0.2 * noise + (is_norm and name.endswith("weight")))
            elif "pos_embed" in name or name.endswith("query"):
                parameter.copy_(noise)
            else:
                parameter.copy_(noise / math.sqrt(parameter[0].numel()))


def assert_close(name: str, actual: Any, expected: Any, tolerance: float, record: Record) -> None:
    """Fails with the name, the first bad index, the largest difference and the SQNR.

    Args:
        name: of what is compared.
        actual: a tensor or array.
        expected: from an independent implementation.
        tolerance: largest difference allowed, as part of the largest expected magnitude.
        record: notes the difference in the test report.
    """
    actual, expected = _array(actual), _array(expected)
    assert actual.shape == expected.shape, f"{name}: {actual.shape} against {expected.shape}"
    assert np.isfinite(actual).all(), f"{name}: not finite"
    error = np.abs(actual - expected)
    relative = error.max() / np.abs(expected).max()
    record(name, f"max difference {error.max():.3g}, relative {relative:.3g}")
    if relative > tolerance:
        bad = np.argwhere(error > tolerance * np.abs(expected).max())[0]
        power = (expected**2).mean() / (error**2).mean()
        raise AssertionError(
            f"{name}: first bad index {tuple(bad.tolist())}, max difference {error.max():.3g}, "
            f"relative {relative:.3g} > {tolerance:.3g}, SQNR {10 * math.log10(power):.1f} dB"
        )


def _array(values: Any) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().double().numpy()
    return np.asarray(values, dtype=np.float64)
