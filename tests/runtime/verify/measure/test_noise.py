"""The noise floor: what the reference loses in the checkpoint's own 16 bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from convert.checkpoint.reader import Checkpoint
from runtime.reference import metrics
from runtime.reference.lazy_weights import LazyLinear
from runtime.reference.load import load_reference
from runtime.verify.check import Check
from runtime.verify.measure import noise
from runtime.verify.measure.noise import load_noise_floor
from runtime.verify.report.report import Report
from runtime.verify.stages import TorchStages, shape_of
from runtime.verify.verify import verify
from tests.support.tiny import write_checkpoint

STAGES = ("vision_embed", "vision_block", "vision_norm", "resample", "logits")


def test_a_linear_of_16_bits_sums_in_float32() -> None:
    """256 + 1 - 256 is 0 where a sum is kept in bfloat16, which has 8 bits."""
    linear = LazyLinear(3, 1)
    linear.weight = nn.Parameter(torch.tensor([[256.0, 1.0, -256.0]]).bfloat16(), False)
    linear.bias = nn.Parameter(torch.tensor([0.5]).bfloat16(), False)
    found = linear(torch.ones(2, 3).bfloat16())
    assert found.dtype == torch.bfloat16
    assert found.tolist() == [[1.5], [1.5]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_mapped_model_loses_what_a_loaded_one_loses(tmp_path: Path, dtype: torch.dtype) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "c", dtype=dtype))
    floor = load_noise_floor(checkpoint, None)
    assert floor is not None
    reference, loaded = (
        TorchStages(load_reference(checkpoint, dtype=kind)) for kind in (torch.float32, dtype)
    )
    vision = checkpoint.config.vision
    assert vision is not None
    pixels = torch.randn((3, vision.image_size, vision.image_size))
    x = reference.vision_embed(pixels)
    embeds = reference.embed([1, 7, 99, 250, 3])
    inputs = (pixels, (0, x), x, (x, shape_of(pixels, checkpoint.config)), embeds)
    least, most = (30, 65) if dtype == torch.bfloat16 else (48, 85)  # 8 and 11 bits
    for name, given in zip(STAGES, inputs, strict=True):
        given = given if isinstance(given, tuple) else (given,)
        right, mapped, plain = (
            getattr(stages, name)(*given) for stages in (reference, floor.stages, loaded)
        )
        assert mapped.dtype == torch.float32
        loss = metrics.sqnr_db(right, mapped)
        assert least < loss < most, name
        assert loss == pytest.approx(metrics.sqnr_db(right, plain), abs=3), name
    layers = [stages.layers([embeds], 64, 4) for stages in (reference, floor.stages)]
    assert least - 10 < metrics.sqnr_db(layers[0][-1], layers[1][-1]) < most
    assert torch.equal(floor.stages.embed([5]), floor.stages.embed([5]).to(dtype).float())


def test_float32_has_no_noise_floor(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "c", dtype=torch.float32))
    assert load_noise_floor(checkpoint, None) is None


def floors(report: Report) -> dict[tuple[str, str, str], float | None]:
    return {(c.stage, c.name, c.metric): c.noise_floor for c in report.checks}


def test_each_figure_has_its_floor(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, file = tmp_path / "own.jsonl", tmp_path / "reference"
    data.write_text("\n".join(json.dumps({"question": q}) for q in ("Hello!", "你好")), "utf-8")
    saved = verify(demo, data=data, save_reference=file)
    found = floors(saved)
    measured = {key for key, floor in found.items() if floor is not None}
    assert {stage for stage, _, _ in measured} == {
        *("prompt embeddings", "decoder layers", "sliding window", "hidden states", "LM head"),
        *("logits", "answers"),
    }
    for (stage, name, metric), floor in found.items():
        if floor is not None and metric == "SQNR":
            assert 30 < floor < 70, (stage, name)
    kl = found["logits", "at text tokens", "KL divergence"]
    assert kl is not None and 0 < kl < 1e-3
    assert 0.9 < (found["logits", "at text tokens", "same top-1"] or 0) <= 1
    assert saved.to_json()["positions"]["text"]["noise_floor"]["kl_nats"] == pytest.approx(
        kl, abs=1e-6
    )

    without = verify(demo, data=data, noise_floor=False)
    assert set(floors(without).values()) == {None}
    assert not without.has_noise_floor and saved.has_noise_floor
    assert [c.threshold for c in without.checks] == [c.threshold for c in saved.checks]

    def load(*arguments: object, **options: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(noise, "load_reference", load)
    read = verify(demo, data=data, reference_results=file)
    assert floors(read) == found
    assert (read.positions, read.answers) == (saved.positions, saved.answers)


def test_a_floor_is_no_limit() -> None:
    lost = Check("s", "n", "SQNR", "dB", 30.0, 40.0, 39.0, True, {}, 20.0)
    assert not lost.passed, "what an engine loses beyond its arithmetic is a fault all the same"
