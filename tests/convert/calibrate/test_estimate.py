"""The estimate of a calibration's time, and the default that depends on it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from convert.bundle.plan import Plan, Recipe, make_plan
from convert.calibrate import estimate
from convert.calibrate.built_in import default_samples
from convert.calibrate.calibration import calibrate
from convert.calibrate.samples import tokenize
from convert.checkpoint.reader import Checkpoint
from convert.conversion import default_method
from convert.conversion.conversion import Conversion
from convert.pipeline import begin, resolve_config
from convert.support.progress import silent
from tests.support.tiny import write_checkpoint

HOUR = 3600.0
NOTHING = {
    "target": "host", "quant": None, "method": None, "kv": None, "target_size": None,
    "calibration": None, "skip_bad": False, "mlc": None, "resume": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


def planned(checkpoint: Path, output: Path, **asked: Any) -> tuple[Plan, Conversion]:
    config = resolve_config(checkpoint, output, **{**NOTHING, **asked})
    conversion, (product,) = begin(config, silent, time.monotonic())
    plan = product.plan(conversion)
    assert plan is not None
    return plan, conversion


@pytest.fixture
def takes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the seconds that a calibration with all samples is said to take."""

    def set_seconds(seconds: float) -> None:
        def estimated(config: Any, plan: Plan, samples: list[Any]) -> float:
            return seconds * len(samples) / len(default_samples(demo=None, pictures=True))

        monkeypatch.setattr(default_method, "estimate_seconds", estimated)

    return set_seconds


@pytest.mark.parametrize(
    ("seconds", "method", "note"),
    [
        (20.0, "gptq", "less than a minute; --method rtn skips it"),
        (23 * 60.0, "gptq", "about 23 min; --method rtn skips it"),
        (HOUR, "gptq", "about 60 min; --method rtn skips it"),
        (
            3 * HOUR,
            "gptq",
            "about 45 min with 64 of 256 samples (--method gptq: all); --method rtn skips it",
        ),
        (
            20 * HOUR,
            "rtn",
            "none: it would take about 5 hours here; --method gptq calibrates all the same",
        ),
    ],
)
def test_the_default_calibrates_for_an_hour_at_most(
    checkpoint: Path, tmp_path: Path, takes: Any, seconds: float, method: str, note: str
) -> None:
    takes(seconds)
    plan, conversion = planned(checkpoint, tmp_path / "b")
    assert (plan.recipe.scheme.name, plan.recipe.method) == ("small", method)
    assert conversion.notes == [("calibration", note)]
    everything = len(default_samples(demo=None, pictures=True))
    assert len(conversion.samples()) == everything // (4 if "64 of" in note else 1)


def test_what_the_user_names_applies(checkpoint: Path, tmp_path: Path, takes: Any) -> None:
    takes(5 * HOUR)
    for asked in ({"method": "gptq"}, {"quant": "small"}):
        plan, conversion = planned(checkpoint, tmp_path / "b", **asked)
        assert plan.recipe.method == "gptq"
        assert conversion.notes == [("calibration", "about 5 hours; --method rtn skips it")]
    for asked in ({"method": "rtn"}, {"quant": "q4f16_1"}):
        plan, conversion = planned(checkpoint, tmp_path / "b", **asked)
        assert (plan.recipe.method, conversion.notes) == ("rtn", [])


def test_without_a_tokenizer_the_default_rounds(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "c", decoder_only=True, tokenizer=False)
    plan, conversion = planned(source, tmp_path / "b")
    assert plan.recipe.method == "rtn"
    ((_, note),) = conversion.notes
    assert note.startswith("none: the checkpoint has no tokenizer; --calibration takes")


def test_the_operations_are_those_that_torch_counts(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its counter sees products and attention, not factors, solving, nor the search."""
    for name in ("_ROUNDING", "_FACTORS", "_CHOICE", "_SOLVING"):
        monkeypatch.setattr(estimate, name, 0)
    opened = Checkpoint.open(checkpoint)
    plan = make_plan(opened.config, opened.untied_head, Recipe.load("small"))
    config = resolve_config(checkpoint, tmp_path / "b", **NOTHING)
    samples = Conversion(config, opened).samples()[:8]
    counted = estimate.count_operations(opened.config, plan, tokenize(samples, opened))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        calibrate(opened, plan, samples, tmp_path / "home", silent)
    assert 0.7 < counted / counter.get_total_flops() < 1.3
