"""verify names what a planted fault is, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convert.bundle.manifest import Bundle
from convert.cli import main
from quantize.layout import pack_tiles, unpack_tiles
from quantize.schemes import GroupScheme
from runtime.sessions.engine_session import EngineSession
from runtime.verify.cases import built_in_cases
from runtime.verify.check import Check
from runtime.verify.diagnose.isolate import Parts
from runtime.verify.diagnose.stored_stages import Deviations, StoredStages
from runtime.verify.measure import run
from runtime.verify.measure.choices import choice_checks, choices_causes
from runtime.verify.stages import EngineStages
from tests.support import faulty_engines as planted
from tests.support.bundles import write_bundle
from tests.support.faulty_engines import Arrays, Verified, alter_config, alter_tensors
from tests.support.tiny import write_checkpoint

SCHEME = GroupScheme.load("q4f16_1")


def _one_cause(found: Any, where: str, *words: str) -> None:
    failed, causes = found
    assert failed, "the fault must be noticed"
    assert [cause.where for cause in causes] == [where], causes
    for word in words:
        assert word in causes[0].why, causes[0].why


def test_a_good_bundle_has_no_cause(models: Verified, bundle: Path) -> None:
    assert models.causes(bundle) == ([], [])


def test_parts_that_are_right_are_no_cause(models: Verified, bundle: Path) -> None:
    """As if every stage had failed: all is tried, and nothing is found."""
    stages = (
        *("weights", "preprocessing", "vision encoder", "resampler", "prompt embeddings"),
        *("decoder layers", "sliding window", "LM head", "logits"),
    )
    pretended = [Check(stage, "all", "SQNR", "dB", 1, 9, 8, True) for stage in stages]
    _one_cause(models.causes(bundle, pretended=pretended), "weights: all", "no tensor and no part")


def test_a_decoder_alone_that_is_right_has_no_cause(tmp_path: Path) -> None:
    """The model of the arithmetic takes the engine's place: no program is needed."""
    bundle = Bundle.open(write_bundle(tmp_path / "text", decoder_only=True))
    models = Verified(bundle.path)
    settings = run.load_settings()
    cases = built_in_cases(settings["built_in"], None)
    reference, engine = models.reference, models.arithmetic
    stored = StoredStages(bundle.config, bundle.plan, bundle.weights())
    parts = Parts(reference, engine, stored, models.tokenizer, settings["thresholds"])
    assert parts.causes(cases, ["prompt embeddings", "decoder layers", "LM head"]) == []
    bent = stored.with_rules(Deviations(rotation="neighbours"))
    parts = Parts(reference, engine, bent, models.tokenizer, settings["thresholds"])
    causes = parts.causes(cases, ["answers"])  # none of the parts failed: all are tried
    assert [cause.where for cause in causes] == ["positions (RoPE)"]


def test_another_models_checkpoint(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    other = write_checkpoint(tmp_path / "other", config=config, seed=9)
    found = Verified(bundle, other).causes(bundle)
    _one_cause(found, "weights: 80 of 80 tensors", "the one that the bundle was made from?")


@pytest.mark.parametrize(
    ("chosen", "where", "why"),
    [
        ([3, 1, 2], None, ""),
        ([3, 1, 4], "KV cache", "1 of 2 greedy choices of an answer"),
        ([3, 3, 2], "KV cache", "the first is"),
        ([1, 1, 2], "sampling", "the first token"),
        ([3, 1, 2, 4], "sampling", "a repetition penalty?"),
    ],
)
def test_choices(chosen: list[int], where: str | None, why: str) -> None:
    logits = torch.eye(5)[[3, 1, 2, 3]]  # the likeliest tokens
    failed = [check for check in choice_checks(chosen, logits) if not check.passed]
    causes = choices_causes(failed)
    assert [cause.where for cause in causes] == ([] if where is None else [where])
    assert all(why in cause.why for cause in causes)


def test_the_command_says_the_cause(
    copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = run.load_settings()
    settings["built_in"] |= {"pictures": 1, "max_new_tokens": 4}
    monkeypatch.setattr(run, "load_settings", lambda: settings)
    alter_tensors(copy, _double)
    assert main(["verify", str(copy)]) == 1
    assert "cause: weights: llm.layers.0.down: is 2 times" in capsys.readouterr().out
    assert main(["verify", str(copy), "--json"]) == 1
    causes = json.loads(capsys.readouterr().out)["causes"]
    assert [cause["where"] for cause in causes] == ["weights: llm.layers.0.down"]


def _swap(tensors: Arrays) -> Arrays:
    parts = [(f"llm.layers.{i}.o.q_{part}") for i in (0, 1) for part in ("weight", "scale")]
    return dict(zip(parts, [tensors[name] for name in parts[2:] + parts[:2]], strict=True))


def _transpose(tensors: Arrays) -> Arrays:
    name = "llm.layers.1.o"
    q, scale = unpack_tiles(tensors[f"{name}.q_weight"], tensors[f"{name}.q_scale"], 256)
    weight = ((q.astype(np.float32) - 7) * np.repeat(scale.astype(np.float32), 32, axis=1)).T
    groups = weight.reshape(256, -1, 32)
    scale = (np.abs(groups).max(-1) / 7).astype(np.float16)
    codes = np.rint(groups / scale.astype(np.float32)[..., None] + 7).astype(np.uint8)
    packed = pack_tiles(codes.reshape(256, 256), scale, SCHEME)
    return {f"{name}.q_weight": packed[0], f"{name}.q_scale": packed[1]}


def _scale_step(tensors: Arrays) -> Arrays:
    scale = tensors["llm.layers.1.gate_up.q_scale"].copy()
    scale[3, 2, 5] = np.nextafter(scale[3, 2, 5], np.float16(1))
    return {"llm.layers.1.gate_up.q_scale": scale}


def _code_step(tensors: Arrays) -> Arrays:
    codes = tensors["vision.blocks.2.fc1.weight.q_weight"].copy()
    codes[0, 0, 0, 0] += 1 if codes[0, 0, 0, 0] < 127 else -1
    return {"vision.blocks.2.fc1.weight.q_weight": codes}


def _double(tensors: Arrays) -> Arrays:
    name = "llm.layers.0.down.q_scale"
    return {name: tensors[name] * np.float16(2)}


def _zeros(tensors: Arrays) -> Arrays:
    return {"resampler.key_positions": tensors["resampler.key_positions"] * 0}


def _nan(tensors: Arrays) -> Arrays:
    norm = tensors["llm.norm.weight"].copy()
    norm[7] = np.nan
    return {"llm.norm.weight": norm}


@pytest.mark.parametrize(
    ("change", "where", "why"),
    [
        (_transpose, "weights: llm.layers.1.o", "is transposed"),
        (
            _scale_step,
            "weights: llm.layers.1.gate_up",
            "1 of 5,120 scales (at [53, 2]) is off by one step of float16",
        ),
        (
            _code_step,
            "weights: vision.blocks.2.fc1.weight",
            "codes (at [0, 0]) is off by 1",
        ),
        (_double, "weights: llm.layers.0.down", "is 2 times what it should be"),
        (_zeros, "weights: resampler.key_positions", "holds zeros only"),
        (_nan, "weights: llm.norm.weight", "1 of 256 values are not finite"),
    ],
)
def test_a_tensor(
    change: Callable[[Arrays], Arrays], where: str, why: str, models: Verified, copy: Path
) -> None:
    alter_tensors(copy, change)
    _one_cause(models.causes(copy), where, why)


def test_two_tensors_in_each_others_place(models: Verified, copy: Path) -> None:
    alter_tensors(copy, _swap)
    _, causes = models.causes(copy)
    assert [(cause.where, cause.why) for cause in causes] == [
        ("weights: llm.layers.0.o", "holds what belongs into llm.layers.1.o"),
        ("weights: llm.layers.1.o", "holds what belongs into llm.layers.0.o"),
    ]


def test_a_file(models: Verified, copy: Path) -> None:
    path = copy / "generation.json"
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    _one_cause(models.causes(copy), "files: generation.json", "SHA-256")


@pytest.mark.parametrize(
    ("stages", "where", "why"),
    [
        (planted.Bilinear, "preprocessing", "equals a bilinear resize"),
        (planted.BlueFirst, "preprocessing", "equals blue and red exchanged exactly"),
        (planted.OneLevel, "kernels: vision patch embedding", "outputs differ much"),
        (planted.BadBlock, "kernels: vision block 1", "outputs differ much"),
        (planted.BadLayer, "kernels: decoder layer 0", "16 of 256 outputs differ"),
        (planted.ShortWindow, "sliding window", "1 token fewer than the window holds"),
        (planted.NothingPinned, "sliding window", "token 24 is the first wrong one"),
        (planted.LostCache, "KV cache", "what the first 16 left in the cache is lost"),
        (planted.MixedCache, "KV cache", "token 3 is the first wrong one, and only in layer 1"),
    ],
)
def test_an_engine_that_does_something_else(
    stages: type[EngineStages], where: str, why: str, models: Verified, bundle: Path
) -> None:
    _one_cause(models.causes(bundle, stages=stages), where, why)


def test_an_int8_cache(checkpoint: Path, tmp_path: Path) -> None:
    """One that is right has no cause; one that forgets is named, as float16 ones are."""
    folder = tmp_path / "bundle"
    arguments = ["convert", str(checkpoint), "-o", str(folder), "--target", "host", "--kv", "int8"]
    assert main([*arguments, "--method", "rtn"]) == 0
    models = Verified(folder)
    assert models.causes(folder) == ([], [])
    why = "what the first 16 left in the cache is lost"
    _one_cause(models.causes(folder, stages=planted.LostCache), "KV cache", why)


@pytest.mark.parametrize(
    ("session", "why"),
    [(planted.Penalty, "a repetition penalty?"), (planted.Warm, "the first token")],
)
def test_choices_that_are_not_greedy(
    session: type[EngineSession], why: str, models: Verified, bundle: Path
) -> None:
    _one_cause(models.causes(bundle, session=session), "sampling", why)


@pytest.mark.parametrize(
    ("base", "why"),
    [
        (500000.0, "a RoPE base of 500,000, the configuration says 10,000"),
        (3e7, "no known base or order"),
    ],
)
def test_a_wrong_rope_base(
    base: float, why: str, models: Verified, bundle: Path, copy: Path
) -> None:
    manifest = json.loads((copy / "bundle.json").read_text())
    manifest["model"]["rope_theta"] = base
    (copy / "bundle.json").write_text(json.dumps(manifest))
    _one_cause(models.causes(bundle, runs=copy), "positions (RoPE)", why)


@pytest.mark.parametrize(
    ("changes", "where", "why"),
    [
        ({"scale_emb": 12}, "embedding scale", "scale_emb is missing"),
        (
            {"scale_depth": 12 / 2**0.5},
            "residual scale",
            "scale_depth is not divided by the root of the number of layers",
        ),
        ({"dim_model_base": 256}, "logit scale", "another divisor: 0.25 times"),
    ],
)
def test_a_scale_that_the_program_has_otherwise(
    changes: dict[str, float],
    where: str,
    why: str,
    bundle: Path,
    checkpoint: Path,
    tmp_path: Path,
) -> None:
    folder = alter_config(bundle, checkpoint, tmp_path / "altered", **changes)
    _one_cause(Verified(folder).causes(folder), where, why)
