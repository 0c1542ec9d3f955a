"""Synthetic patterns: what they show, and that each is compared at every stage of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from convert.checkpoint.config import ModelConfig
from convert.checkpoint.reader import Checkpoint
from runtime.reference.load import load_reference
from runtime.verify.cases import Case
from runtime.verify.measure.patterns import PATTERNS, STAGE, compare_patterns, draw_pattern
from runtime.verify.measure.run import load_settings
from runtime.verify.measure.steps import Steps
from runtime.verify.stages import TorchStages
from tests.support.tiny import write_checkpoint
from tests.support.tiny_config import tiny_config


def test_patterns_are_what_they_are_called() -> None:
    vision = ModelConfig.from_json(tiny_config()).vision
    assert vision is not None
    drawn = {name: np.array(draw_pattern(name, vision))[..., 0] for name in PATTERNS}
    size, patch = vision.image_size, vision.patch_size
    assert all(plane.shape == (size, size) for plane in drawn.values())
    assert (drawn["black"] == 0).all() and (drawn["white"] == 255).all()
    board = drawn["checkerboard"]
    assert (board[:patch, :patch] == 0).all() and (board[:patch, patch : 2 * patch] == 255).all()
    assert (board[:-patch] + board[patch:] == 255).all(), "each patch is unlike the one below"
    for name, ramp in (
        ("ramp from the left", drawn["ramp from the left"]),
        ("ramp from the top", drawn["ramp from the top"].T),
    ):
        assert (ramp == ramp[0]).all(), name
        assert (ramp[0, 0], ramp[0, -1]) == (0, 255) and (np.diff(ramp[0].astype(int)) > 0).all()
    bright = drawn["one bright patch"]
    assert (bright == 255).sum() == patch**2 and (bright == 0).sum() == size**2 - patch**2
    rows = np.flatnonzero(bright.any(1))
    assert rows[0] % patch == 0 and len(rows) == patch


class Border(TorchStages):
    """Loses the last patch where it is bright."""

    def vision_embed(self, pixels: Tensor) -> Tensor:
        out = super().vision_embed(pixels)
        if pixels[:, -1, -1].max() > 0.9:
            out = out.clone()
            out[-1] = 0
        return out


def test_each_pattern_is_compared_at_every_stage(tmp_path: Path) -> None:
    model = load_reference(Checkpoint.open(write_checkpoint(tmp_path / "c")))
    right, vision = TorchStages(model), model.config.vision
    assert vision is not None
    told: list[tuple[str, int, int]] = []
    steps = Steps([Case("a", ())], vision.depth, lambda *s: told.append(s), len(PATTERNS))
    steps.start(1)
    thresholds = load_settings()["thresholds"]
    checks = compare_patterns((right, right, Border(model)), thresholds, steps)
    assert {check.stage for check in checks} == {STAGE}
    parts = ["patch embedding", *(f"block {i}" for i in range(vision.depth)), "norm", "resampler"]
    names = [check.name for check in checks if check.metric == "SQNR"]
    assert names == [f"{name}, {part}" for name in PATTERNS for part in parts]
    failed = {check.name for check in checks if not check.passed}
    bright = ("white", "ramp from the left", "ramp from the top")
    assert failed - {"checkerboard, patch embedding"} == {f"{n}, patch embedding" for n in bright}
    assert told[-1][1] == told[-1][2] and told[0][1] < told[0][2]
