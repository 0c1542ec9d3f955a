"""The resampler against `torch.nn.MultiheadAttention` and a bicubic interpolation of our own."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convert.checkpoint.config import CONFIGS, ModelConfig, ResamplerConfig
from convert.checkpoint.positions import interpolate_grid, sincos_grid
from quantize.errors import ShapeError
from runtime.reference.resampler import Resampler
from tests.support.compare import Record, assert_close, randomize

# Both sum the same float32 products in another order. Measured 1.3e-6.
FLOAT32_ORDER = 1e-5
# Ours interpolates in float64, torch in float32. Measured 1e-6.
FLOAT32_FILTER = 5e-6


def _demo() -> tuple[ResamplerConfig, int]:
    config = ModelConfig.load(CONFIGS / "demo" / "config.json")
    assert config.resampler is not None and config.vision is not None
    return config.resampler, config.vision.grid


def _real() -> tuple[ResamplerConfig, int]:
    config = ModelConfig.load(CONFIGS / "model" / "minicpm-v-1.0.json")
    assert config.resampler is not None and config.vision is not None
    return config.resampler, config.vision.grid


def _same_grid() -> tuple[ResamplerConfig, int]:
    c, _ = _demo()
    return replace(c, query_num=25), 5


def _cubic(distance: float, a: float) -> float:
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def _interpolation(stored: int, wanted: int) -> np.ndarray:
    """Weights (wanted, stored) of bicubic interpolation along one axis; the border repeats."""
    weights = np.zeros((wanted, stored))
    for i in range(wanted):
        at = (i + 0.5) * stored / wanted - 0.5
        for tap in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
            weights[i, min(max(tap, 0), stored - 1)] += _cubic(at - tap, a=-0.75)
    return weights


def _key_positions(positions: torch.Tensor, grid: int) -> np.ndarray:
    side = round(positions.shape[0] ** 0.5)
    plane = positions.double().numpy().reshape(side, side, -1)
    w = _interpolation(side, grid)
    return np.einsum("yi,xj,ijd->yxd", w, w, plane).reshape(grid * grid, -1)


@pytest.mark.parametrize("geometry", [_demo, _real, _same_grid])
def test_resampler_equals_multihead_attention(geometry, record_property: Record) -> None:
    c, grid = geometry()
    ours = Resampler(c, grid)
    randomize(ours)
    attention = nn.MultiheadAttention(c.embed_dim, c.num_heads, batch_first=True).eval()
    attention.load_state_dict(ours.attn.state_dict())
    torch.manual_seed(1)
    features = torch.randn(2, grid * grid, c.kv_dim)

    def norm(x: torch.Tensor, layer: nn.LayerNorm) -> torch.Tensor:
        return F.layer_norm(x, (c.embed_dim,), layer.weight, layer.bias, c.norm_eps)

    with torch.no_grad():
        kv = norm(features @ ours.kv_proj.weight.T, ours.ln_kv)
        query = (norm(ours.query, ours.ln_q) + ours.pos_embed).expand(2, -1, -1)
        key = kv + torch.from_numpy(_key_positions(ours.pos_embed, grid)).float()
        mixed, _ = attention(query, key, kv)
        expected = norm(mixed, ours.ln_post) @ ours.proj
        actual = ours(features)
    name = f"image tokens, width {c.embed_dim}, {c.grid} -> {grid}"
    assert_close(name, actual, expected, FLOAT32_ORDER, record_property)


@pytest.mark.parametrize(("stored", "wanted"), [(8, 12), (8, 32), (3, 4), (8, 5), (1, 4)])
def test_key_positions_are_bicubic_without_antialias(
    stored: int, wanted: int, record_property: Record
) -> None:
    positions = torch.randn(stored * stored, 6, generator=torch.manual_seed(2))
    expected = _key_positions(positions, wanted)
    actual = interpolate_grid(positions, wanted, wanted)
    name = f"key positions {stored} -> {wanted}"
    assert_close(name, actual, expected, FLOAT32_FILTER, record_property)


def test_key_positions_of_half_precision_are_computed_in_float32() -> None:
    positions = torch.randn(64, 6, generator=torch.manual_seed(3)).bfloat16()
    assert torch.equal(
        interpolate_grid(positions, 12, 12), interpolate_grid(positions.float(), 12, 12)
    )


@pytest.mark.parametrize(("rows", "columns"), [(28, 37), (37, 28), (8, 8), (1, 40)])
def test_key_positions_of_slices_are_sines_and_cosines(rows: int, columns: int) -> None:
    """Half of the width for the column, half for the row; each value on its own."""
    width, table = 64, sincos_grid(64, rows, columns)
    assert table.dtype == torch.float32
    expected = np.empty((rows, columns, width))
    for y, x, i in np.ndindex(expected.shape):
        place, within = (x, i) if i < width // 2 else (y, i - width // 2)
        wave = (math.sin, math.cos)[within // (width // 4)]
        expected[y, x, i] = wave(place / 10000 ** (within % (width // 4) / (width / 4)))
    found = table.view(rows, columns, width).double().numpy()
    assert np.abs(found - expected).max() < 1e-6


def test_images_of_several_shapes_need_their_shape() -> None:
    c, _ = _demo()
    resampler = Resampler(c, None)
    randomize(resampler)
    features = torch.randn(1, 6, c.kv_dim)
    with torch.no_grad():
        wide, tall = resampler(features, (2, 3)), resampler(features, (3, 2))
    assert (wide - tall).abs().max() > 1e-3
    with pytest.raises(AssertionError, match="several shapes"):
        resampler(features)


def test_positions_that_form_no_square_are_refused() -> None:
    with pytest.raises(ShapeError, match="63 positions"):
        interpolate_grid(torch.zeros(63, 6), 12, 12)
