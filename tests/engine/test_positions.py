"""The engine's position tables equal those that the reference computes for an image's shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from convert.checkpoint.positions import resample_grid, sincos_grid
from tests.engine.components import Components, numbers

# Rows and columns of patches: shapes of overviews and slices, a line, and the stored grid itself.
SHAPES = [(28, 37), (45, 23), (32, 32), (24, 43), (1, 40), (40, 1), (5, 200), (27, 27), (3, 2)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", [27, 3])
@pytest.mark.parametrize("program", ["components", "arm64"])
def test_vision_positions(
    program: str, side: int, shape: tuple[int, int], request: pytest.FixtureRequest
) -> None:
    components: Components = request.getfixturevalue(program)
    rows, columns = shape
    stored = torch.randn(1, side**2, 24, generator=torch.Generator().manual_seed(side))
    fields = (numbers([side, 24, columns, rows]), stored.numpy().tobytes())
    found = np.frombuffer(components.call("positions", *fields), "<f4").reshape(-1, 24)
    # PyTorch computes its weights in float32, which moves them by up to 1e-5.
    expected = resample_grid(stored, rows, columns)[0]
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=2e-5)
    plane = stored.double().view(1, side, side, -1).permute(0, 3, 1, 2)
    exact = F.interpolate(plane, size=shape, mode="bicubic", antialias=True)
    exact = exact.permute(0, 2, 3, 1).reshape(-1, 24)
    np.testing.assert_allclose(found, exact.numpy(), rtol=1e-7, atol=1e-9)
    if side == rows == columns:
        np.testing.assert_array_equal(found, stored[0].numpy())


@pytest.mark.parametrize("count", [1, 37, 2048])
@pytest.mark.parametrize("width", [2304, 256])
def test_encoded_columns_and_rows(components: Components, width: int, count: int) -> None:
    half = width // 2
    found = np.frombuffer(components.call("places", numbers([count, half])), "<f4")
    found = found.reshape(count, half)
    columns = sincos_grid(width, 1, count).numpy()[:, :half]
    rows = sincos_grid(width, count, 1).numpy()[:, half:]
    np.testing.assert_allclose(found, columns, rtol=0, atol=1e-7)
    np.testing.assert_allclose(found, rows, rtol=0, atol=1e-7)
