"""What tensors cost, the advice, and the recipe that comes of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from convert.bundle.manifest import Bundle
from convert.bundle.plan import Recipe, make_plan
from convert.calibrate.target_size import part_formats
from convert.checkpoint.reader import Checkpoint
from convert.cli import main
from convert.support.progress import Progress
from quantize.errors import ConfigError
from runtime.verify.measure import sensitivity
from runtime.verify.measure.sensitivity import Sensitivity, measure_sensitivity
from tests.support.tiny import write_checkpoint

# By part: in 4 bits, and in int8.
LOSSES = {
    "token embedding": (0.010, 0.001),
    "layers' qkv": (0.004, 0.001),
    "layers' o": (0.003, 0.0),
    "layers' gate_up": (0.001, 0.002),  # nothing is gained
    "layers' down": (0.0, 0.0),
}


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Checkpoint, Sensitivity]:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "c"))
    losses = {(p, f): pair[i] for p, pair in LOSSES.items() for i, f in enumerate(("q4", "q8"))}
    losses |= {("vision encoder", "q8"): 0.02, ("vision encoder", "q4"): 0.9}

    def measure(*arguments: object) -> dict[tuple[str, str], float]:
        return losses

    monkeypatch.setattr(sensitivity, "measure_losses", measure)
    plan = make_plan(checkpoint.config, checkpoint.untied_head, Recipe.load("q4f16_1"))
    silent: Progress = lambda stage, done, total: None  # noqa: E731
    return checkpoint, measure_sensitivity(checkpoint, plan, [], tmp_path / "out.json", silent)


def test_the_costliest_part_comes_first(measured: tuple[Checkpoint, Sensitivity]) -> None:
    _, found = measured
    assert [(part.part, part.format) for part in found.parts[:3]] == [
        ("vision encoder", "q8"),
        ("token embedding", "q4"),
        ("layers' qkv", "q4"),
    ]
    assert [part.int8_bytes for part in found.parts if part.format == "q8"] == [0, 0]


def test_what_gains_most_for_a_byte_is_raised(
    measured: tuple[Checkpoint, Sensitivity], tmp_path: Path
) -> None:
    """Of 0.015 nats at least half, the cheapest first; never what gains nothing."""
    checkpoint, found = measured
    able = [p for p in found.parts if p.part in ("token embedding", "layers' qkv", "layers' o")]
    order = sorted(able, key=lambda p: -p.gain_nats / p.int8_bytes)
    gained, expected = 0.0, []
    for part in order:
        if gained >= 0.0075:
            break
        gained += part.gain_nats
        expected.append(part.part)
    assert found.raised == expected
    before = sum(four for four, _ in LOSSES.values()) + 0.02
    assert f"lowers KL from about {before:.3g} to {before - gained:.3g} nats" in found.advice
    recipe = Recipe.load(found.recipe)
    plan = make_plan(checkpoint.config, checkpoint.untied_head, recipe)
    old = make_plan(checkpoint.config, checkpoint.untied_head, Recipe.load("q4f16_1"))
    sizes = part_formats(checkpoint, Recipe.load("q4f16_1"))
    more = sum(sizes[part]["q8"] - sizes[part]["q4"] for part in found.raised)
    assert 0 <= plan.nbytes - old.nbytes - more < 2000, "and some padding"
    raised = {
        a.name for a, b in zip(plan.tensors, old.tensors, strict=True) if a.format != b.format
    }
    assert {t.format for t in plan.tensors if t.name in raised} == {"q8"}
    assert ("llm.embed" in raised) == ("token embedding" in found.raised)


def test_no_advice_where_nothing_gains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "c"))
    monkeypatch.setattr(sensitivity, "measure_losses", lambda *_: {})
    plan = make_plan(checkpoint.config, checkpoint.untied_head, Recipe.load("q4f16_1"))
    found = measure_sensitivity(checkpoint, plan, [], tmp_path / "out.json", lambda *_: None)
    assert (found.raised, found.recipe) == ([], "")
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "cannot be read: No such file"),
        ("{", "not JSON"),
        ("[]", "a list; expected an object"),
        ('{"name": "x"}', "has the keys name"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, content: str | None, what: str) -> None:
    path = tmp_path / "own.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=what):
        Recipe.load(str(path))


def test_the_command_s_advice_can_be_followed(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {("token embedding", "q4"): 0.01, ("token embedding", "q8"): 0.0001}
    monkeypatch.setattr(sensitivity, "measure_losses", lambda *_: losses)
    data, recipe = tmp_path / "own.jsonl", tmp_path / "better.json"
    data.write_text(json.dumps({"question": "Hello!"}), "utf-8")
    capsys.readouterr()
    command = ["verify", str(demo), "--data", str(data), "--sensitivity", str(recipe)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "advice: raising 1 tensor (token embedding) to int8 lowers KL from about 0.01" in said
    assert f"convert with --quant {recipe}" in said
    shutil.copytree(demo, tmp_path / "b")
    assert main(["convert", "-o", str(tmp_path / "b"), "--quant", str(recipe)]) == 0
    bundle = Bundle.open(tmp_path / "b")
    assert bundle.manifest.tensors["llm.embed"].format == "q8"
    assert bundle.manifest.tensors["llm.layers.0.qkv"].format == "q4"
