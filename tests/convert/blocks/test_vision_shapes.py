"""Compiled blocks of the vision encoder on images of several shapes, against the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm

from convert.bundle.plan import Recipe, make_plan
from convert.checkpoint.config import ModelConfig
from convert.checkpoint.tensor_tables import Rule, reference_rules
from runtime.reference.model import MiniCPMV
from tests.support.compare import Record, assert_close
from tests.support.compiled import CompiledModel, compile_here
from tests.support.quantized import NumpyModel, bundle_tensors
from tests.support.tiny import random_state
from tests.support.tiny_config import tiny_config

RAW = tiny_config(
    slice_mode=True, max_slice_nums=9, scale_resolution=56, patch_size=14, num_hidden_layers=1
)
MOST = 32  # patches: twice those of 56 pixels, squared
# Rows and columns: one patch, a row, a column, the trained grid, and the most patches in one row.
SHAPES = [(1, 1), (1, 7), (5, 1), (3, 4), (4, 3), (1, MOST), (8, 4)]
# What 16-bit words in attention (3e-3) leave of it, through two blocks and the resampler.
WORDS = 5e-3
ROUNDING = 5e-6  # float32 sums of some hundred products in another order


class _Models:
    """The compiled blocks, with float16 weights, and the reference with the same weights."""

    def __init__(self) -> None:
        self.config = ModelConfig.from_json(RAW)
        state = {
            name: weight.half().float() for name, weight in random_state(RAW, head="none").items()
        }
        raw = dict(Recipe.load("q4f16_1").source)
        names = [f"vision.blocks.*.{part}.weight" for part in ("qkv", "proj", "fc1", "fc2")]
        half = [
            {"pattern": name, "format": "f16_tiled", "why": "test"}
            for name in (*names, "resampler.*proj.weight")
        ]
        rows = [*half, *raw["tensors"]]
        plan = make_plan(self.config, False, Recipe.from_json({**raw, "tensors": rows}))
        tensors = bundle_tensors(state, plan)
        self.model = CompiledModel(self.config, compile_here(self.config, plan), tensors)
        self.numpy = NumpyModel(self.config, tensors)
        made = {
            rule.name: rule.make(state.__getitem__)
            for rule in reference_rules(self.config, False)
            if isinstance(rule, Rule)
        }
        made["llm.lm_head.weight"] = made["llm.model.embed_tokens.weight"]
        self.reference = MiniCPMV(self.config)
        self.reference.load_state_dict(made)


@pytest.fixture(scope="module")
def models() -> _Models:
    return _Models()


def _pixels(shape: tuple[int, int], models: _Models) -> np.ndarray:
    assert models.config.vision is not None
    sides = (side * models.config.vision.patch_size for side in shape)
    return np.random.default_rng(sum(shape)).standard_normal((3, *sides)).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_an_image_of_any_shape(
    shape: tuple[int, int], models: _Models, record_property: Record
) -> None:
    """Every block on what the reference gives it, then all of them."""
    model, vpm, resampler = models.model, models.reference.vpm, models.reference.resampler
    assert vpm is not None and resampler is not None
    pixels = _pixels(shape, models)
    with torch.no_grad():
        expected = vpm.embed(torch.from_numpy(pixels)[None])
        found = x = model.vision_embed(pixels)
        assert found.shape == (shape[0] * shape[1], vpm.pos_embed.shape[2])
        assert_close("vision_embed", found, expected[0], ROUNDING, record_property)
        for i, block in enumerate(vpm.blocks):
            found, expected = model.vision_block(i, expected[0].numpy()), block(expected)
            assert_close(f"vision_block {i}", found, expected[0], WORDS, record_property)
            x = model.vision_block(i, x)
        found, expected = model.vision_norm(expected[0].numpy()), vpm.norm(expected)
        assert_close("vision_norm", found, expected[0], ROUNDING, record_property)
        found, expected = model.resample(expected[0].numpy(), shape), resampler(expected, shape)
        assert_close("resampler", found, expected[0], WORDS, record_property)
        found, expected = model.resample(model.vision_norm(x), shape), expected[0]
        assert_close("image tokens", found, expected, WORDS, record_property)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_key_positions(shape: tuple[int, int], models: _Models, record_property: Record) -> None:
    found, expected = models.model.key_positions(shape), models.numpy.key_positions(shape)
    assert found.shape == (shape[0] * shape[1], RAW["hidden_size"])
    assert_close("key_positions", found, expected, ROUNDING, record_property)
    if shape == (3, 4):  # rows are no columns
        other = models.numpy.key_positions((4, 3))
        assert np.abs(other - expected).max() > 0.1 * np.abs(expected).max()


def test_shapes_that_contradict_are_refused(models: _Models) -> None:
    """Positions are as many as patches, and nothing is written beyond the planned memory."""
    model, width = models.model, 144
    pixels, short = tvm.runtime.tensor(_pixels((2, 3), models)), np.zeros((5, width), np.float32)
    with pytest.raises(RuntimeError, match="param=positions"):
        model._functions["vision_embed"](pixels, tvm.runtime.tensor(short), *model._patch_embed)
    for too_many in (MOST + 1, 10 * MOST):
        with pytest.raises(tvm.error.InternalError, match="storage allocation failure"):
            model.vision_block(0, np.zeros((too_many, width), np.float32))
