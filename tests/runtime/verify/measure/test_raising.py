"""What single tensors gain in int8: estimates against measurements, and a bad tensor planted."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from convert.bundle.manifest import Bundle
from convert.bundle.plan import Recipe, make_plan
from convert.calibrate.built_in import default_samples
from convert.calibrate.samples import CalibrationSample
from convert.calibrate.target_size import few_samples
from convert.checkpoint.reader import Checkpoint
from convert.support.progress import silent
from runtime.verify.files.weights import BundleTensors
from runtime.verify.measure.raising import Raising
from runtime.verify.measure.sensitivity import measure_sensitivity
from tests.support.bundles import convert, without_programs
from tests.support.tiny import random_state, write_checkpoint
from tests.support.tiny_config import tiny_config

SAMPLES = default_samples(demo="demo", pictures=True)[:24]
BAD = "llm.layers.1.down"


def planted(folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[Any, Bundle]:
    """A tiny model with one tensor that 4 bits cannot hold, and its bundle.

    Four values of each group are large, so that one code is left for the others, and what they are
    multiplied with is small: in full precision all of them count the same.
    """
    state = random_state(tiny_config(), head="none")
    state["llm.model.layers.1.mlp.down_proj.weight"][:, ::8] *= 24
    state["llm.model.layers.1.mlp.up_proj.weight"][::8] /= 24
    source = write_checkpoint(folder / "c", state=state)
    monkeypatch.setenv("MINICPMV_CACHE", str(folder / "cache"))
    without_programs(monkeypatch)
    assert convert(source, folder / "b", *arguments) == 0
    return Checkpoint.open(source), Bundle.open(folder / "b")


def tensors_of(bundle: Bundle) -> BundleTensors:
    return BundleTensors(bundle.plan, bundle.weights())


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_a_planted_bad_tensor_is_found(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, bundle = planted(tmp_path, monkeypatch, "--method", method)
    file = tmp_path / "better.json"
    found = measure_sensitivity(checkpoint, tensors_of(bundle), SAMPLES, file, silent)
    assert found.tensors[0].name == BAD
    assert found.raised == [BAD]
    (trial,) = [trial for trial in found.trials if trial.tensors == [BAD]]
    assert trial.kl_nats < 0.7 * found.kl_nats
    more, when = found.tensors[0].int8_bytes, ", before calibration," * (method == "gptq")
    assert found.advice == (
        f"raising 1 tensor ({BAD}) to int8 lowers KL{when} from {found.kl_nats:.3g} to "
        f"{trial.kl_nats:.3g} nats for {more / 1e6:.3g} MB"
    )
    raised = make_plan(checkpoint.config, checkpoint.untied_head, Recipe.load(str(file)))
    changed = {
        new.name: new.format
        for new, old in zip(raised.tensors, bundle.plan.tensors, strict=True)
        if new.format != old.format
    }
    assert changed == {BAD: "q8"}
    assert abs(raised.nbytes - bundle.plan.nbytes - more) < 1024, "and padding"


def test_a_method_that_mends_it_is_not_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AWQ folds the large values away; its tensors are measured as they are stored."""
    checkpoint, bundle = planted(tmp_path, monkeypatch, "--method", "awq")
    raising = Raising(checkpoint, tensors_of(bundle), few_samples(SAMPLES, checkpoint), silent)
    estimates = raising.estimate()
    assert estimates[BAD] < 0.5 * estimates["llm.embed"]
    everything = frozenset(estimates)
    measured = raising.measure([frozenset(), everything, frozenset({BAD})])
    now = measured[frozenset()]
    assert measured[everything] < 0.05 * now, "what is folded back computes the same"
    assert 0.8 * now < measured[frozenset({BAD})] < now


def test_calibrated_codes_do_not_hide_what_is_gained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPTQ's codes make good each other's losses on the samples, so none can be replaced alone; its
    bundle is judged as searched scales store it."""
    found = []
    for method in ("mse", "gptq"):
        checkpoint, bundle = planted(tmp_path / method, monkeypatch, "--method", method)
        file = tmp_path / f"{method}.json"
        found.append(measure_sensitivity(checkpoint, tensors_of(bundle), SAMPLES, file, silent))
    searched, compensated = found
    assert compensated.kl_nats == searched.kl_nats
    assert compensated.tensors == searched.tensors
    assert compensated.trials == searched.trials


def test_what_is_promised_is_what_the_new_bundle_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The measured loss of a set is that of the bundle which the recipe makes."""
    checkpoint, bundle = planted(tmp_path, monkeypatch)
    file = tmp_path / "better.json"
    found = measure_sensitivity(checkpoint, tensors_of(bundle), SAMPLES, file, silent)
    (trial,) = [trial for trial in found.trials if trial.tensors == found.raised]
    assert convert(checkpoint.path, tmp_path / "better", "--quant", str(file)) == 0
    better = Bundle.open(tmp_path / "better")
    assert better.manifest.tensors[BAD].format == "q8"
    assert better.manifest.tensors["llm.layers.0.down"].format == "q4"
    again = Raising(checkpoint, tensors_of(better), few_samples(SAMPLES, checkpoint), silent)
    measured = again.measure([frozenset()])[frozenset()]
    assert math.isclose(measured, trial.kl_nats, rel_tol=1e-4)


@pytest.mark.parametrize("head", ["none", "different"])
def test_estimates_order_the_tensors_as_measurements_do(
    head: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each tensor alone in int8: what one pass estimated beside what a run for each measured."""
    source = write_checkpoint(tmp_path / "c", head=head, outliers=True)
    without_programs(monkeypatch)
    assert convert(source, tmp_path / "b") == 0
    checkpoint, bundle = Checkpoint.open(source), Bundle.open(tmp_path / "b")
    raising = Raising(checkpoint, tensors_of(bundle), few_samples(SAMPLES, checkpoint), silent)
    estimates = raising.estimate()
    expected = {t.name for t in bundle.plan.tensors if t.format == "q4"}
    assert set(estimates) == expected and ("llm.head" in expected) == (head == "different")
    measured = raising.measure([frozenset(), *(frozenset({name}) for name in expected)])
    now = measured[frozenset()]
    gains = {name: now - measured[frozenset({name})] for name in expected}
    names = sorted(expected)
    pair = torch.tensor([[estimates[n] for n in names], [gains[n] for n in names]])
    assert torch.corrcoef(pair)[0, 1] > 0.9
    assert max(estimates, key=estimates.__getitem__) == max(gains, key=gains.__getitem__)
    # The halves of the derivatives add up to the loss of what is in 4 bits.
    everything = raising.measure([frozenset(expected)])[frozenset(expected)]
    assert sum(estimates.values()) == pytest.approx(now - everything, rel=0.35)


def test_a_decoder_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_checkpoint(tmp_path / "c", decoder_only=True)
    without_programs(monkeypatch)
    assert convert(source, tmp_path / "b") == 0
    checkpoint, bundle = Checkpoint.open(source), Bundle.open(tmp_path / "b")
    texts: list[CalibrationSample] = default_samples(demo=None, pictures=False)[:8]
    raising = Raising(checkpoint, tensors_of(bundle), few_samples(texts, checkpoint), silent)
    measured = raising.measure([frozenset(), frozenset({"llm.embed", "llm.layers.0.o"})])
    assert min(measured.values()) > 0


def test_shared_layers_give_what_separate_runs_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, bundle = planted(tmp_path, monkeypatch)
    raising = Raising(checkpoint, tensors_of(bundle), few_samples(SAMPLES, checkpoint), silent)
    sets = [
        frozenset(),
        frozenset({"llm.layers.0.o"}),
        frozenset({"llm.layers.0.o", BAD}),
        frozenset({BAD}),
        frozenset({"llm.embed", BAD}),
    ]
    together = raising.measure(sets)
    assert together == {one: raising.measure([one])[one] for one in sets}
    assert len(set(together.values())) == len(sets)
