"""Calibration of a model with slices: what the original's code gives, and the built-in pictures."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from convert.bundle.plan import Plan, Recipe, make_plan
from convert.calibrate import estimate
from convert.calibrate.built_in import default_samples
from convert.calibrate.calibration import calibrate
from convert.calibrate.enlarged import with_slices
from convert.calibrate.pictures import encode_pictures, put_images
from convert.calibrate.samples import (
    CalibrationError,
    CalibrationSample,
    TokenizedSample,
    read_samples,
    tokenize,
)
from convert.checkpoint.config import CONFIGS, ModelConfig, VisionConfig
from convert.checkpoint.reader import Checkpoint
from convert.support.progress import silent
from quantize.schemes import dequantize_groups
from runtime.inputs.slices import plan_cut
from runtime.reference.load import VISION, load_reference
from runtime.reference.model import MiniCPMV
from tests.support.original_conversations import CONVERSATIONS, SIZES, picture
from tests.support.slices import DEMO, write_slices_checkpoint

GOLDEN = Path(__file__).resolve().parents[2] / "golden/original-2.0"
# As tests/runtime/sessions/test_golden_slices.py: of a tensor's largest value.
TOLERANCE = 1e-4
ENCODED = [SIZES.index(size) for size in ((14, 14), (449, 448), (777, 333), (300, 2000))]
REAL = ModelConfig.load(CONFIGS / "model" / "minicpm-v-2.0.json")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(write_slices_checkpoint(tmp_path_factory.mktemp("slices") / "model"))


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> MiniCPMV:
    return load_reference(checkpoint, only=VISION)


@pytest.fixture(scope="module")
def vision(checkpoint: Checkpoint) -> VisionConfig:
    assert checkpoint.config.vision is not None
    return checkpoint.config.vision


def sample(number: int, answer: str = "") -> CalibrationSample:
    """Returns a conversation that the original's code has answered."""
    size, _, messages = CONVERSATIONS[number]
    draw = None if size is None else partial(picture, *size)
    return CalibrationSample(tuple(messages), answer, f"number {number}", draw, str(size or ""))


def plan(method: str) -> Plan:
    """Returns a plan of the decoder, whose tensors are the demo's."""
    recipe = Recipe.load("q4f16_1").with_method(method)
    return make_plan(ModelConfig.load(DEMO / "config.json"), False, recipe)


def test_the_decoder_reads_the_original_s_prompt(checkpoint: Checkpoint) -> None:
    rows: list[dict[str, Any]] = json.loads((GOLDEN / "conversations.json").read_text("utf-8"))
    numbers = [n for n, (size, _, _) in enumerate(CONVERSATIONS) if math.prod(size or ()) < 10**6]
    assert {len(rows[n]["images"]) for n in numbers} == {0, 1, 3, 4, 5, 6, 7}
    for number, tokenized in zip(
        numbers, tokenize([sample(n) for n in numbers], checkpoint), strict=True
    ):
        runs = [[i, len(list(run))] for i, run in itertools.groupby(tokenized.ids.tolist())]
        assert runs == rows[number]["prompt"], number
        images = rows[number]["images"]
        assert tokenized.patches == tuple(w * h // 14**2 for w, h in images)
        assert len(tokenized.image_starts) == len(images)
        for start in tokenized.image_starts:
            assert tokenized.ids[start : start + 64].tolist() == [0] * 64


def test_each_image_is_encoded_as_the_original_does(
    checkpoint: Checkpoint, model: MiniCPMV
) -> None:
    tokenized = tokenize([sample(n) for n in ENCODED], checkpoint)
    with np.load(GOLDEN / "arrays.npz") as arrays:
        for number, found in zip(ENCODED, encode_pictures(model, tokenized), strict=True):
            assert found is not None
            for i, image in enumerate(found):
                expected = arrays[f"tokens {number} {i}"]
                values = image.numpy().ravel()
                kept = values[:: -(-values.size // expected.size)]
                apart = np.abs(kept - expected.ravel()).max() / np.abs(values).max()
                assert apart < TOLERANCE, (number, i)
            assert f"tokens {number} {len(found)}" not in arrays


def test_images_stand_at_their_placeholders(checkpoint: Checkpoint) -> None:
    (tokenized,) = tokenize([sample(SIZES.index((777, 333)))], checkpoint)
    count = len(tokenized.image_starts)
    images = torch.arange(1.0, count + 1).view(count, 1, 1).expand(count, 64, 2)
    embeds = torch.zeros(len(tokenized.ids), 2)
    put_images(embeds, tokenized, images)
    runs = [(int(v), len(list(r))) for v, r in itertools.groupby(embeds[:, 0].tolist()) if v]
    assert runs == [(i + 1, 64) for i in range(count)] and count > 2
    assert (embeds[tokenized.ids != 0] == 0).all()


def test_a_picture_is_encoded_once(
    checkpoint: Checkpoint, model: MiniCPMV, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = SIZES.index((449, 448))
    two = tokenize([sample(number, "Yes."), sample(number, "No."), sample(-1)], checkpoint)
    assert model.vpm is not None
    seen: list[int] = []
    forward = model.vpm.forward
    monkeypatch.setattr(model.vpm, "forward", lambda x: seen.append(1) or forward(x))
    first, second, text = encode_pictures(model, two)
    assert first is second and text is None and len(seen) == 3


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_calibrates(checkpoint: Checkpoint, tmp_path: Path, method: str) -> None:
    """Codes that suit the inputs: with slices they differ from those without."""
    numbers = [SIZES.index(size) for size in ((60, 40), (300, 200), (168, 168), (449, 448))]
    answered = [sample(n, "A red circle.") for n in numbers]
    cut = calibrate(checkpoint, plan(method), answered, tmp_path / "cut", silent)
    square = Checkpoint.open(DEMO)
    whole = calibrate(square, plan(method), answered, tmp_path / "whole", silent)
    found = [results.codes("llm.layers.1.down") for results in (cut, whole)]
    assert found[0] is not None and found[1] is not None
    assert not np.array_equal(found[0][0], found[1][0])
    weight = checkpoint.read("llm.model.layers.1.mlp.down_proj.weight").float()
    stored = torch.from_numpy(dequantize_groups(*found[0], plan(method).recipe.scheme))
    if method == "gptq":  # AWQ's are of a folded weight
        assert float((stored - weight).abs().mean() / weight.abs().mean()) < 0.2


def test_the_estimate_counts_every_image(checkpoint: Checkpoint, model: MiniCPMV) -> None:
    tokenized = tokenize([sample(SIZES.index(size)) for size in ((777, 333), (60, 40))], checkpoint)
    few = [TokenizedSample(s.ids, s.image_starts, s.picture_digest) for s in tokenized]
    with_images, without = (
        estimate.count_operations(checkpoint.config, plan("gptq"), each)
        for each in (tokenized, few)
    )
    with FlopCounterMode(display=False) as counter:
        encode_pictures(model, tokenized)
    assert 0.8 < (with_images - without) / counter.get_total_flops() < 1.2


def test_a_picture_that_cannot_be_cut_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    Image.new("RGB", (1, 9000)).save(tmp_path / "line.png")
    line = json.dumps({"image": "line.png", "question": "What?"})
    (tmp_path / "samples.jsonl").write_text(line)
    samples = read_samples(tmp_path / "samples.jsonl", pictures=True, skip_bad=False)
    with pytest.raises(CalibrationError, match=r"samples\.jsonl, line 1: .*too long and narrow"):
        tokenize(samples, checkpoint)


def test_built_in_pictures_are_cut_into_every_number() -> None:
    """Without, none of them would be cut; eight are enlarged."""
    assert REAL.vision is not None
    plain = default_samples(demo=None, pictures=True)
    assert set(_images(plain, REAL.vision).values()) == {1}
    enlarged = with_slices(plain, REAL.vision)
    counts = Counter(_images(enlarged, REAL.vision).values())
    assert counts.pop(1) == 39 and sum(counts.values()) == 8
    assert sorted(counts) == [3, 4, 7, 9, 10]
    for before, after in zip(plain, enlarged, strict=True):
        assert (before.messages, before.answer) == (after.messages, after.answer)
        if before.picture is not None and after.picture is not None:
            (w, h), (wide, high) = before.picture().size, after.picture().size
            assert abs(math.log(w / h) - math.log(wide / high)) < 0.01
            assert (before.picture_digest == after.picture_digest) is ((w, h) == (wide, high))


def test_other_models_get_the_built_in_pictures_as_they_are(tmp_path: Path) -> None:
    plain = default_samples(demo=None, pictures=True)
    square = ModelConfig.load(CONFIGS / "model" / "minicpm-v-1.0.json").vision
    source = write_slices_checkpoint(tmp_path / "checkpoint", slice_mode=False)
    for vision in (None, square, Checkpoint.open(source).config.vision):
        assert with_slices(plain, vision) == plain


def _images(samples: list[CalibrationSample], vision: VisionConfig) -> dict[str, int]:
    """Returns the number of images by picture."""
    return {
        s.picture_digest: len(plan_cut(s.picture().size, vision).sizes)
        for s in samples
        if s.picture is not None
    }
