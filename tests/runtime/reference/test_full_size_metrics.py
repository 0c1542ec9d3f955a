"""Figures summed up in runs, as tensors of a full-size model need, are those of the whole."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.reference import metrics


@pytest.fixture(params=[1, 7, 64, 1000])
def pair(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    """Two tensors of 35 x 9 values, in runs that divide them, do not, or take them whole."""
    monkeypatch.setattr(metrics, "_RUN_VALUES", request.param)
    generator = torch.Generator().manual_seed(0)
    first = torch.randn((35, 9), generator=generator)
    return first, first + 0.1 * torch.randn((35, 9), generator=generator)


def test_sqnr_in_runs(pair: tuple[Tensor, Tensor]) -> None:
    first, second = (t.double() for t in pair)
    expected = 10 * math.log10(first.square().sum() / (second - first).square().sum())
    assert metrics.sqnr_db(*pair) == pytest.approx(expected, abs=1e-5)  # differences in float32


def test_cosine_in_runs(pair: tuple[Tensor, Tensor]) -> None:
    first, second = (t.double().flatten() for t in pair)
    assert metrics.cosine(*pair) == pytest.approx(float(F.cosine_similarity(first, second, dim=0)))
    assert metrics.cosine(pair[0], -pair[0]) == pytest.approx(-1)
    assert metrics.cosine(torch.zeros_like(pair[0]), pair[1]) == 0


def test_a_value_that_is_not_finite_is_found_in_any_run(pair: tuple[Tensor, Tensor]) -> None:
    first, second = pair
    for value in (math.nan, math.inf):
        second[34, 8] = value
        assert metrics.sqnr_db(first, second) == -math.inf
        assert math.isnan(metrics.cosine(first, second))
