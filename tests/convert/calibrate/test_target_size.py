"""Formats chosen for a size, the recipes' sizes at full size, and what info says of them."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest

from convert import cli
from convert.bundle.manifest import Bundle
from convert.bundle.plan import Recipe, make_plan
from convert.calibrate import target_size
from convert.calibrate.built_in import default_samples
from convert.calibrate.target_size import (
    LOSSLESS,
    choose_recipe,
    measure_losses,
    parse_size,
    part_formats,
)
from convert.checkpoint.config import CONFIGS, ModelConfig
from convert.checkpoint.reader import Checkpoint
from convert.checkpoint.tensor_tables import Rule, reference_rules
from convert.commands.recipe_info import FULL_SIZE, ORIGINAL_PORT_BYTES
from quantize.errors import ConfigError
from quantize.schemes import RECIPES
from tests.support.bundles import convert, without_programs
from tests.support.tiny import write_checkpoint

SMALL = Recipe.load("small")
MANIFEST = Path(__file__).resolve().parents[4] / "shared/model/minicpm-v/ndarray-cache.json"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("size") / "checkpoint"
    return Checkpoint.open(write_checkpoint(path, outliers=True))


def silent(stage: str, done: int, total: int) -> None:
    pass


def nbytes(checkpoint: Checkpoint, recipe: Recipe) -> int:
    return make_plan(checkpoint.config, checkpoint.untied_head, recipe).nbytes


def test_measured_losses(checkpoint: Checkpoint) -> None:
    losses = measure_losses(checkpoint, SMALL, default_samples(demo="demo", pictures=True), silent)
    table = part_formats(checkpoint, SMALL)
    assert set(losses) == {(p, f) for p, row in table.items() for f in row if f != LOSSLESS}
    assert all(loss > 0 and math.isfinite(loss) for loss in losses.values())
    for part, row in table.items():
        if "q4" in row:
            assert losses[part, "q8"] < 0.2 * losses[part, "q4"], part


@pytest.mark.parametrize("head", ["none", "different"])
def test_the_decoder_alone(head: Any, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "c", decoder_only=True, head=head)
    checkpoint = Checkpoint.open(source)
    losses = measure_losses(checkpoint, SMALL, default_samples(demo=None, pictures=False), silent)
    parts = {part for part, _ in losses}
    assert not parts & {"vision encoder", "resampler"}
    assert ("LM head" in parts) == (head == "different")


def test_the_choice_is_the_best(checkpoint: Checkpoint) -> None:
    """Against all choices there are."""
    table = part_formats(checkpoint, SMALL)
    losses = {
        (part, form): (0.1 if form == "q4" else 0.003) * (1 + i) ** 1.5
        for i, (part, row) in enumerate(table.items())
        for form in row
        if form != LOSSLESS
    }
    every = [dict(zip(table, chosen, strict=True)) for chosen in itertools.product(*table.values())]
    assert len(every) > 500
    sized = [
        (sum(table[p][f] for p, f in chosen.items()), sum(losses.get(x, 0) for x in chosen.items()))
        for chosen in every
    ]
    fixed = nbytes(checkpoint, choose_recipe(checkpoint, SMALL, 10**9, losses).recipe)
    fixed -= max(size for size, _ in sized)
    smallest = min(size for size, _ in sized) + fixed
    for size in (smallest + 4096, smallest * 5 // 4, smallest * 3 // 2, smallest * 2):
        choice = choose_recipe(checkpoint, SMALL, size, losses)
        assert nbytes(checkpoint, choice.recipe) <= size
        # 2 KiB: headers and padding differ between choices.
        best = min(loss for taken, loss in sized if taken + fixed <= size - 2048)
        assert choice.loss <= best + 1e-9


def test_a_wide_input_without_whole_groups_is_offered_no_q4() -> None:
    config = ModelConfig.load(FULL_SIZE)
    stand_in: Any = type("C", (), {"config": config, "untied_head": False})
    table = part_formats(stand_in, SMALL)
    assert "q4" not in table["vision encoder"], "K = 4304 of fc2"
    assert "q4" in table["layers' down"] and "LM head" not in table


@pytest.mark.parametrize(
    ("text", "size"),
    [("1.9GB", 1_900_000_000), ("1900 MB", 1_900_000_000), ("1.5GiB", 3 << 29), ("2MiB", 2 << 20)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "1.9", "GB", "-1GB", "1e3MB", "0MB", "1.9TB", "nanGB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected a size such as 1\.9GB"):
        parse_size(text)


def test_a_size_that_no_recipe_reaches(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(target_size, "measure_losses", None)  # it is said before the work
    assert convert(checkpoint.path, tmp_path / "b", "--target-size", "0.1MB") == 2
    message = capsys.readouterr().err
    smallest = float(message.split("takes ")[1].split(" MB")[0])
    assert "too small; the smallest recipe" in message and 0.1 < smallest < 10
    assert convert(checkpoint.path, tmp_path / "b", "--target-size", "small") == 2
    only = ("--target", "mlc-android", "--target-size", "1GB")
    assert convert(checkpoint.path, tmp_path / "b", *only) == 2
    assert "--target-size is for bundles" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_a_bundle_of_a_size(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_programs(monkeypatch)
    monkeypatch.setenv("MINICPMV_CACHE", str(tmp_path / "cache"))
    least = nbytes(checkpoint, SMALL)
    size = f"{least * 1.2 / 1e6:.3f}MB"
    arguments = ("--target-size", size, "--method", "mse")
    assert convert(checkpoint.path, tmp_path / "b", *arguments) == 0
    bundle = Bundle.open(tmp_path / "b")
    assert least < bundle.plan.nbytes <= parse_size(size)
    assert bundle.plan.recipe.method == "mse"
    assert any("alone, KL" in tensor.why for tensor in bundle.plan.tensors)


@pytest.mark.parametrize(
    ("name", "megabytes"), [("small", 1989), ("balanced", 2120), ("best", 2520), ("mlc", 2390)]
)
def test_recipes_at_full_size(
    name: str, megabytes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = RECIPES / f"{name}.json"
    assert cli.main(["info", str(path), "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    full = info["full_size"]
    assert full["bytes"] == pytest.approx(megabytes * 1e6, rel=0.02)
    assert full["bytes"] < ORIGINAL_PORT_BYTES
    # The header, and the padding that aligns tensors.
    assert sum(group["bytes"] for group in full["groups"]) == pytest.approx(full["bytes"], rel=1e-3)
    assert info["method"] == ("rtn" if name == "mlc" else "gptq")
    assert cli.main(["info", str(path)]) == 0
    shown = capsys.readouterr().out
    assert f"{full['bytes'] / 1e6:,.0f} MB" in shown and "of the original port's 2,952 MB" in shown


def test_damaged_recipes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = dict(SMALL.source)
    for change, problem in (
        ({"method": "magic"}, "method 'magic' is unknown"),
        ({"method": 5}, "method '5' is unknown"),
        ({"surprise": 1}, "has the keys"),
        ({"tensors": []}, "says nothing about tensor"),
    ):
        (tmp_path / "r.json").write_text(json.dumps({**good, **change}))
        assert cli.main(["info", str(tmp_path / "r.json")]) == 2
        assert problem in capsys.readouterr().err


@pytest.mark.skipif(not MANIFEST.is_file(), reason="the real port's manifest is not at hand")
def test_the_real_manifest() -> None:
    """The configuration has the shapes of the tensors that the original port holds."""
    real: dict[str, tuple[int, ...]] = {}
    total = 0
    for shard in json.loads(MANIFEST.read_text())["records"]:
        for record in shard["records"]:
            total += record["nbytes"]
            name, shape = record["name"], tuple(record["shape"])
            if name.endswith((".q_scale", ".q_zero")):
                continue
            if name.endswith(".q_weight"):
                real[name.removesuffix(".q_weight")] = (shape[0], shape[1] * 8)
            else:
                real[name] = shape
    assert total == ORIGINAL_PORT_BYTES
    config = ModelConfig.load(CONFIGS / "model" / "minicpm-v-1.0.json")
    ours = sum(
        math.prod(rule.shape) for rule in reference_rules(config, False) if isinstance(rule, Rule)
    )
    # Version 2.0's port holds the resampler's positions for 70 x 70 patches, and stores no
    # padding; decoder and vision encoder are the same.
    decoder = sum(math.prod(s) for name, s in real.items() if name.startswith("llm."))
    expected = sum(
        math.prod(rule.shape)
        for rule in reference_rules(config, False)
        if isinstance(rule, Rule) and rule.name.startswith("llm.")
    )
    assert decoder == expected
    vision = sum(math.prod(s) for name, s in real.items() if name.startswith("vpm."))
    assert vision == sum(
        math.prod(rule.shape)
        for rule in reference_rules(config, False)
        if isinstance(rule, Rule) and rule.name.startswith("vpm.")
    )
    assert ours == pytest.approx(decoder + vision, rel=0.02)
