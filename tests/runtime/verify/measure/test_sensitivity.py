"""What tensors cost, the advice, and the recipe that comes of it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from convert.bundle.manifest import Bundle
from convert.bundle.plan import Recipe, make_plan
from convert.calibrate.target_size import with_tensors
from convert.checkpoint.reader import Checkpoint
from convert.cli import main
from convert.support.progress import silent
from quantize.errors import ConfigError
from runtime.verify.measure import sensitivity
from runtime.verify.measure.sensitivity import Sensitivity, measure_sensitivity
from tests.support.tiny import write_checkpoint

PLAIN = Recipe.load("q4f16_1")
# By part: in 4 bits, and in int8.
LOSSES = {
    "token embedding": (0.010, 0.001),
    "layers' qkv": (0.004, 0.001),
    "layers' o": (0.003, 0.0),
    "layers' gate_up": (0.001, 0.002),  # nothing is gained
    "layers' down": (0.0, 0.0),
}


# By tensor: estimated, and by how much a set's measured loss falls for each that it has.
GAINS = {
    "llm.embed": (0.010, 0.008),
    "llm.layers.0.qkv": (0.004, 0.004),
    "llm.layers.1.o": (0.003, 0.003),
    "llm.layers.0.o": (0.0001, 0.0),
    "llm.layers.1.down": (-0.002, -0.001),
}
LOSS = 0.02  # nats, of the model as it is stored


class Stand:
    """In the place of what runs the model."""

    def __init__(self, *_: object) -> None:
        pass

    def estimate(self) -> dict[str, float]:
        return {name: estimate for name, (estimate, _) in GAINS.items()}

    def measure(self, sets: Sequence[frozenset[str]]) -> dict[frozenset[str], float]:
        assert all("llm.layers.1.down" not in one for one in sets), "it gains nothing"
        return {one: LOSS - sum(GAINS[name][1] for name in one) for one in sets}


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    losses = {(p, f): pair[i] for p, pair in LOSSES.items() for i, f in enumerate(("q4", "q8"))}
    losses |= {("vision encoder", "q8"): 0.02, ("vision encoder", "q4"): 0.9}
    monkeypatch.setattr(sensitivity, "measure_losses", lambda *_: losses)
    monkeypatch.setattr(sensitivity, "Raising", Stand)
    return Checkpoint.open(write_checkpoint(tmp_path / "c"))


def measure(checkpoint: Checkpoint, recipe: Recipe, file: Path) -> Sensitivity:
    plan = make_plan(checkpoint.config, checkpoint.untied_head, recipe)
    stored: Any = SimpleNamespace(plan=plan)
    return measure_sensitivity(checkpoint, stored, [], file, silent)


def test_the_costliest_part_comes_first(checkpoint: Checkpoint, tmp_path: Path) -> None:
    found = measure(checkpoint, PLAIN, tmp_path / "out.json")
    assert [(part.part, part.format) for part in found.parts[:3]] == [
        ("vision encoder", "q8"),
        ("token embedding", "q4"),
        ("layers' qkv", "q4"),
    ]
    assert [part.int8_bytes for part in found.parts if part.format == "q8"] == [0, 0]
    assert [gain.name for gain in found.tensors] == list(GAINS)


def test_the_smallest_set_that_gains_enough_is_raised(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """All together gain 0.015; two small tensors and the embedding both reach half of that or
    not, by what was measured, not by what was estimated."""
    found = measure(checkpoint, PLAIN, tmp_path / "out.json")
    more = {gain.name: gain.int8_bytes for gain in found.tensors}
    enough = [t for t in found.trials if LOSS - t.kl_nats >= 0.5 * 0.015]
    best = min(enough, key=lambda trial: trial.int8_bytes)
    assert {*found.raised} == {*best.tensors} and best.int8_bytes == sum(
        more[n] for n in best.tensors
    )
    assert ["llm.embed"] in [trial.tensors for trial in found.trials]
    assert f"lowers KL from {LOSS:.3g} to {best.kl_nats:.3g} nats for" in found.advice
    plan, old = (
        make_plan(checkpoint.config, checkpoint.untied_head, recipe)
        for recipe in (Recipe.load(found.recipe), PLAIN)
    )
    assert 0 <= plan.nbytes - old.nbytes - best.int8_bytes < 2000, "and some padding"
    pairs = zip(plan.tensors, old.tensors, strict=True)
    assert {a.name: a.format for a, b in pairs if a.format != b.format} == dict.fromkeys(
        found.raised, "q8"
    )


def test_names_of_many_tensors_are_cut(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"llm.layers.{i}.{stage}" for i in (0, 1) for stage in ("qkv", "o", "down")]
    monkeypatch.setitem(sensitivity.__dict__, "_ENOUGH", 1.0)
    for name in [*GAINS]:
        monkeypatch.delitem(GAINS, name)
    for name in names:
        monkeypatch.setitem(GAINS, name, (0.001, 0.001))
    monkeypatch.setattr(
        Stand, "measure", lambda _, sets: {one: 0.02 - len(one) / 1e3 for one in sets}
    )
    found = measure(checkpoint, PLAIN, tmp_path / "out.json")
    assert len(found.raised) == 6
    assert found.advice.startswith("raising 6 tensors (") and " and 2 more) to int8" in found.advice


def test_no_advice_where_nothing_gains(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for estimate in ({}, {"llm.layers.0.o": -1.0}, {"llm.layers.0.o": 1.0}):
        monkeypatch.setattr(Stand, "estimate", lambda _, found=estimate: found)
        found = measure(checkpoint, PLAIN, tmp_path / "out.json")
        assert (found.raised, found.recipe) == ([], "")
        assert found.advice == "no tensor in 4 bits gains from int8"
    assert not (tmp_path / "out.json").exists()


def test_tensors_of_one_kind_in_two_formats(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Their part has no cost of its own; what is raised already is not proposed again."""
    mixed = with_tensors(PLAIN, {"llm.layers.1.down": "q8"}, "test")
    found = measure(checkpoint, mixed, tmp_path / "out.json")
    assert "layers' down" not in {part.part for part in found.parts}
    recipe = Recipe.load(found.recipe)
    assert recipe.format_of("llm.layers.1.down").format == "q8"
    assert recipe.format_of("llm.layers.0.down").format == "q4"


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("llm.layers.2.down", False),
        ("llm.layers.0.gate", False),
        ("vision.blocks.7.qkv.weight", False),
        ("llm.layers.1.down", True),
        ("llm.layers.[0-9].down", True),
        ("llm.head", True),  # of a model whose head is its embedding
    ],
)
def test_a_tensor_that_the_model_lacks(checkpoint: Checkpoint, name: str, known: bool) -> None:
    recipe = with_tensors(PLAIN, {name: "q8"}, "test")
    if known:
        make_plan(checkpoint.config, checkpoint.untied_head, recipe)
        return
    with pytest.raises(ConfigError, match=f"names the tensor {re.escape(name)}, which the model"):
        make_plan(checkpoint.config, checkpoint.untied_head, recipe)


def test_one_recipe_serves_a_model_without_vision(tmp_path: Path) -> None:
    alone = Checkpoint.open(write_checkpoint(tmp_path / "d", decoder_only=True))
    recipe = with_tensors(PLAIN, {"vision.blocks.7.qkv.weight": "f16_tiled"}, "test")
    make_plan(alone.config, alone.untied_head, recipe)


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
    """The engine runs layers of two formats, and every stage is as its arithmetic says."""
    gains = {"llm.layers.2.down": (0.01, 0.01)}
    monkeypatch.setattr(sensitivity, "measure_losses", lambda *_: {})
    monkeypatch.setattr(sensitivity, "Raising", Stand)
    monkeypatch.setitem(globals(), "GAINS", gains)
    data, recipe = tmp_path / "own.jsonl", tmp_path / "better.json"
    data.write_text(json.dumps({"question": "Hello!"}), "utf-8")
    capsys.readouterr()
    command = ["verify", str(demo), "--data", str(data), "--sensitivity", str(recipe)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert (
        "advice: raising 1 tensor (llm.layers.2.down) to int8 lowers KL from 0.02 to 0.01" in said
    )
    assert f"convert with --quant {recipe}" in said
    shutil.copytree(demo, tmp_path / "b")
    assert main(["convert", "-o", str(tmp_path / "b"), "--quant", str(recipe)]) == 0
    bundle = Bundle.open(tmp_path / "b")
    assert bundle.manifest.tensors["llm.layers.2.down"].format == "q8"
    assert bundle.manifest.tensors["llm.layers.1.down"].format == "q4"
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "b"), "--json"]) == 0
    checks = json.loads(capsys.readouterr().out)["checks"]
    same = [c for c in checks if c["stage"] == "decoder layers" and "same" in c["metric"]]
    assert {c["name"] for c in same} == {f"layer {i}" for i in range(4)}
    capsys.readouterr()
    assert main(["info", str(tmp_path / "b"), "--json"]) == 0
    formats = json.loads(capsys.readouterr().out)["formats"]
    assert formats["q8"]["tensors"] == 1 + sum(
        t.format == "q8" for n, t in Bundle.open(demo).manifest.tensors.items()
    )
