"""Calibration of tiny models: what comes out, going on after a break, folds that change nothing."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convert.bundle.manifest import Bundle
from convert.bundle.plan import Plan, Recipe, make_plan
from convert.bundle.weights_file import WeightsFile
from convert.calibrate import calibration
from convert.calibrate.built_in import default_samples
from convert.calibrate.calibration import calibrate
from convert.calibrate.layer import STAGES, LayerWalk, fold_layer
from convert.calibrate.samples import (
    CalibrationError,
    CalibrationSample,
    read_samples,
    tokenize,
)
from convert.calibrate.store import CalibratedWeights
from convert.checkpoint.reader import Checkpoint
from convert.encode import write_weights
from quantize.errors import CheckpointError
from runtime.reference import metrics
from runtime.reference.arithmetic import apply_arithmetic
from runtime.reference.load import load_reference
from runtime.verify.files.stored_weights import load_stored
from runtime.verify.files.weights import BundleTensors
from tests.support.bundles import convert, without_programs
from tests.support.damage import flip
from tests.support.tiny import write_checkpoint
from tests.support.tiny_config import tiny_config

RECIPE = Recipe.load("q4f16_1")


def silent(stage: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("calibration") / "checkpoint"
    return Checkpoint.open(write_checkpoint(path, outliers=True))


def plan_of(checkpoint: Checkpoint, method: str, **formats: str) -> Plan:
    """Returns a plan; `formats` by the ends of tensors' names."""
    recipe = RECIPE.with_method(method)
    rows = [{"pattern": f"llm.*{end}", "format": f, "why": "test"} for end, f in formats.items()]
    recipe = Recipe.from_json({**recipe.source, "tensors": rows + recipe.source["tensors"]})
    return make_plan(checkpoint.config, checkpoint.untied_head, recipe)


def samples() -> list[CalibrationSample]:
    return default_samples(demo="demo", pictures=True)[:24]


def loss(checkpoint: Checkpoint, method: str, folder: Path, **formats: str) -> float:
    """Returns the mean KL divergence of a method's arithmetic on samples that it did not see."""
    plan = plan_of(checkpoint, method, **formats)
    folder.mkdir(exist_ok=True)
    calibrated = None
    if method not in ("rtn", "mse"):
        calibrated = calibrate(checkpoint, plan, samples(), folder, silent)
    write_weights(checkpoint, plan, folder / f"{method}.w", silent, calibrated)
    weights = WeightsFile(folder / f"{method}.w")
    model = load_stored(load_reference(checkpoint), BundleTensors(plan, weights))
    apply_arithmetic(model, plan, stored=True)
    reference = load_reference(checkpoint)
    losses = []
    with torch.inference_mode():
        for sample in tokenize(default_samples(demo="demo", pictures=True)[-12:], checkpoint):
            assert sample.images is not None
            (pixels,), (start,) = sample.images(), sample.image_starts
            image = reference.encode_image(pixels)[0]
            logits = []
            for each in (reference, model):
                embeds = each.embed_prompt(sample.ids, start, image)
                logits.append(each.llm.logits(each.llm(embeds))[0])
            losses.append(metrics.kl_divergence(*logits))
    return metrics.mean(torch.cat(losses))


def test_methods_lose_less_and_less(checkpoint: Checkpoint, tmp_path: Path) -> None:
    methods = ("rtn", "mse", "awq", "gptq")
    rtn, mse, awq, gptq = (loss(checkpoint, m, tmp_path) for m in methods)
    assert mse < 0.85 * rtn
    assert awq < 0.9 * mse  # three channels are 20 times as large as the others
    assert gptq < 0.5 * mse


def test_awq_leaves_other_formats_alone(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A tensor in 16 bits is written as the checkpoint has it, so no factor may rely on it."""
    everything = loss(checkpoint, "awq", tmp_path / "all")
    for stage in STAGES:
        others = {other.name for other in STAGES} - {stage.name} | {"embed"}
        exact = dict.fromkeys(others, "f16_tiled")
        assert loss(checkpoint, "awq", tmp_path / stage.name, **exact) < everything, stage.name


@pytest.mark.parametrize("head", ["copy", "different"])
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_goes_on_after_a_break(
    method: str, head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_checkpoint(tmp_path / "c", head="copy" if head == "copy" else "different")
    checkpoint = Checkpoint.open(source)
    plan = plan_of(checkpoint, method)
    whole = calibrate(checkpoint, plan, samples()[:4], tmp_path / "whole", silent)
    steps: list[tuple[int, int]] = []

    def stop_at(limit: int) -> None:
        def progress(stage: str, done: int, total: int) -> None:
            if stage == "calibration":
                steps.append((done, total))
                if done >= limit:
                    raise KeyboardInterrupt

        calibrate(checkpoint, plan, samples()[:4], tmp_path / "broken", progress)

    for limit in (1, 5, 7):
        with pytest.raises(KeyboardInterrupt):
            stop_at(limit)
    begun = len(steps)
    stop_at(1000)
    assert steps[begun][0] >= 2, "nothing is done twice"
    assert steps[-1][0] == steps[-1][1]
    folder = next((tmp_path / "broken").iterdir())
    assert not list(folder.glob("stream*")) and not list(folder.glob("*.partial"))
    resumed = CalibratedWeights(folder)
    names = ["llm.embed", "llm.head", *(f"llm.layers.{i}.{s.name}" for i in (0, 1) for s in STAGES)]
    for name in names:
        expected, found = whole.codes(name), resumed.codes(name)
        assert (expected is None) == (found is None), name
        if expected is not None and found is not None:
            np.testing.assert_array_equal(found[0], expected[0], err_msg=name)
            np.testing.assert_array_equal(found[1], expected[1], err_msg=name)
    assert (whole.codes("llm.head") is not None) == (method == "gptq" and head == "different")
    monkeypatch.setattr(calibration, "load_reference", None)  # finished: nothing is computed
    calibrate(checkpoint, plan, samples()[:4], tmp_path / "whole", silent)


def test_a_damaged_stream_is_computed_anew(checkpoint: Checkpoint, tmp_path: Path) -> None:
    plan = plan_of(checkpoint, "awq")

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "calibration" and done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(checkpoint, plan, samples()[:2], tmp_path, stop)
    stream = next(tmp_path.glob("*/stream.safetensors"))
    stream.write_bytes(stream.read_bytes()[:1000])
    calibrate(checkpoint, plan, samples()[:2], tmp_path, silent)


@pytest.mark.parametrize(
    ("damage", "notices"),
    [
        (lambda part: part.write_bytes(part.read_bytes()[:500]), 1),
        (lambda part: flip(part, 0.9), 1),  # among the codes, where nothing else would see it
        (lambda part: flip(part.with_suffix(".sha256")), 1),
        (lambda part: part.with_suffix(".sha256").unlink(), 1),
        (lambda part: part.unlink(), 0),
    ],
)
def test_a_part_that_is_lost_or_damaged(
    damage: Callable[[Path], object],
    notices: int,
    checkpoint: Checkpoint,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plan = plan_of(checkpoint, "awq")
    calibrate(checkpoint, plan, samples()[:2], tmp_path, silent)
    part = next(tmp_path.glob("*/part-layer-000.safetensors"))
    whole = part.read_bytes()
    damage(part)
    calibrate(checkpoint, plan, samples()[:2], tmp_path, silent)
    assert caplog.messages == [f"{part}: damaged; calibrated again"] * notices
    assert part.read_bytes() == whole


def test_folding_changes_nothing_in_full_precision(checkpoint: Checkpoint) -> None:
    layer = load_reference(checkpoint).llm.model.layers[0]
    stream = [torch.randn(40, 256, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    with torch.no_grad():
        folded = copy.deepcopy(layer)
        scheme = RECIPE.with_method("awq").scheme
        fold_layer(folded, stream, scheme, [stage.name for stage in STAGES])
        assert not torch.equal(folded.mlp.down_proj.weight, layer.mlp.down_proj.weight)
        norm = folded.input_layernorm.weight
        assert torch.equal(norm, norm.half().float()), "a bundle stores norms in float16"
        for x in stream:
            positions = torch.arange(len(x))
            expected = layer(x.unsqueeze(0), positions, None, None, 0)
            found = folded(x.unsqueeze(0), positions, None, None, 0)
            assert metrics.sqnr_db(expected - x, found - x) > 100


def test_a_walk_is_the_layer(checkpoint: Checkpoint) -> None:
    layer = load_reference(checkpoint).llm.model.layers[1]
    x = torch.randn(30, 256, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        expected = layer(x.unsqueeze(0), torch.arange(30), None, None, 0)[0]
        # More samples than go through a linear at once.
        walk = LayerWalk(copy.deepcopy(layer), [x[:9], x] * 40)  # type: ignore[arg-type]
        for stage in STAGES:
            assert walk.inputs[0].shape[1] == walk.weight(stage).shape[1]
            walk.advance()
    for i, found in enumerate(walk.stream):
        assert torch.allclose(found, expected if i % 2 else expected[:9], atol=1e-5)


def test_targets_are_in_the_unit_of_what_is_added(checkpoint: Checkpoint) -> None:
    layer = load_reference(checkpoint).llm.model.layers[0]
    assert layer.residual_scale != 1
    stream = [torch.randn(9, 256, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    full, other = (LayerWalk(copy.deepcopy(layer), [f * x for x in stream]) for f in (1, 0.9))  # type: ignore[arg-type]
    with torch.no_grad():
        for stage in STAGES:
            if stage.adds:  # a linear that gave this would make the hidden states equal
                before, targets = other.stream, full.targets(other)
            full.advance()
            other.advance()
            if stage.adds:
                for x, y, wanted in zip(before, targets, full.stream, strict=True):
                    assert torch.allclose(x + y * layer.residual_scale, wanted, atol=1e-5)
            after = zip(before, other.stream, strict=True) if stage.adds else ()
            assert not any(torch.equal(x, y) for x, y in after), "it is added here"


def test_a_tensor_with_nan_is_refused_by_name(tmp_path: Path) -> None:
    from tests.support.tiny import random_state

    config = tiny_config()
    state = random_state(config)
    state["llm.model.layers.1.mlp.up_proj.weight"][3, 5] = torch.nan
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "c", config=config, state=state))
    with pytest.raises(CheckpointError, match=r"llm\.model\.layers\.1\.mlp\.up_proj\.weight"):
        calibrate(checkpoint, plan_of(checkpoint, "gptq"), samples()[:2], tmp_path / "h", silent)


def test_another_sample_is_another_calibration(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for count in (2, 4):
        calibrate(checkpoint, plan_of(checkpoint, "awq"), samples()[:count], tmp_path, silent)
    assert len(list(tmp_path.iterdir())) == 2


def write_lines(folder: Path, *lines: object) -> Path:
    Image.new("RGB", (20, 30), "red").save(folder / "red.png")
    (folder / "broken.png").write_bytes(b"\x89PNG nothing")
    path = folder / "samples.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts), "utf-8")
    return path


GOOD = {"image": "red.png", "question": "这是什么颜色？", "answer": "红色。"}


def test_reads_json_lines(tmp_path: Path, checkpoint: Checkpoint) -> None:
    turns = ["Hello?", "Hi.", "我们走吧？"]
    path = write_lines(tmp_path, GOOD, "", {"question": "Hello?"}, {"question": turns})
    first, second, third = read_samples(path, pictures=True, skip_bad=False)
    roles = [(message["role"], message["content"]) for message in third.messages]
    assert roles == list(zip(("user", "assistant", "user"), turns, strict=True))
    assert first.messages[-1]["content"] == "这是什么颜色？" and first.answer == "红色。"
    assert first.picture is not None and first.picture().size == (20, 30)
    assert second.picture is None and second.answer == ""
    tokenized = tokenize([first, second], checkpoint)
    assert len(tokenized[0].image_starts) == 1 and tokenized[1].image_starts == ()
    assert tokenized[0].digest != tokenized[1].digest


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ({"image": "none.png", "question": "?"}, r"none\.png: no such file"),
        ({"image": "broken.png", "question": "?"}, "not a .* can be decoded"),
        ({"image": "a\0b.png", "question": "?"}, "no file can have this name"),
        ('{"question": "?"', "not a line of JSON"),
        ("[" * 100_000, "not a line of JSON"),
        ('"text"', "expected an object of strings"),
        ({"question": 5}, "expected an object of strings"),
        ({"question": ["a", 5]}, "expected an object of strings"),
        ({"question": "?", "answer": ["a"]}, "expected an object of strings"),
        ({"question": []}, "the conversation is empty"),
        ({"question": ["a", "b"]}, "the last message is the assistant's"),
        ({"question": ["a", "b", " "]}, "the prompt is empty"),
        ({"image": "red.png"}, "lacks the key question"),
        ({"question": "?", "img": "red.png"}, "unknown key 'img'"),
        ({"question": "  "}, "the prompt is empty"),
        ({"question": "\ud800"}, "not valid Unicode"),
        ({"question": "x" * 2_000_000}, "at most 1,048,576 are allowed"),
    ],
)
def test_bad_lines_are_named(
    line: object, problem: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_lines(tmp_path, GOOD, line, GOOD)
    with pytest.raises(CalibrationError, match=rf"samples\.jsonl, line 2: .*({problem}).*--skip-b"):
        read_samples(path, pictures=True, skip_bad=False)
    with caplog.at_level(logging.WARNING):
        assert len(read_samples(path, pictures=True, skip_bad=True)) == 2
    assert "line 2" in caplog.text and "left out" in caplog.text


def test_samples_of_token_ids(tmp_path: Path, checkpoint: Checkpoint) -> None:
    path = write_lines(tmp_path, {"ids": [5, 2, 7]}, GOOD)
    first, second = read_samples(path, pictures=True, skip_bad=False, token_ids=True)
    one, other = tokenize([first, second], checkpoint)
    assert one.ids.tolist() == [5, 2, 7] and one.images is None and other.images is not None
    without = copy.copy(checkpoint)
    without.tokenizer = None
    assert tokenize([first], without)[0].digest == one.digest
    with pytest.raises(CalibrationError, match=r"no tokenizer\.model.*\{\"ids\": \[1, 5\]\}"):
        tokenize([second], without)
    with pytest.raises(CalibrationError, match=r"line 1: expected an object of strings"):
        read_samples(path, pictures=True, skip_bad=False)


@pytest.mark.parametrize("ids", [[], "5", [1.0], [True], [[1]], None])
def test_no_token_ids(ids: object, tmp_path: Path) -> None:
    path = write_lines(tmp_path, {"ids": ids})
    with pytest.raises(CalibrationError, match="line 1: ids is no list of at least one integer"):
        read_samples(path, pictures=True, skip_bad=False, token_ids=True)


@pytest.mark.parametrize("ids", [[-1], [1 << 70], [1 << 20]])
def test_token_ids_of_another_model(ids: list[int], tmp_path: Path, checkpoint: Checkpoint) -> None:
    path = write_lines(tmp_path, {"ids": ids})
    samples = read_samples(path, pictures=True, skip_bad=False, token_ids=True)
    with pytest.raises(CalibrationError, match=r"line 1: token id .* is not in the model's vocab"):
        tokenize(samples, checkpoint)


def test_refused_samples(tmp_path: Path, checkpoint: Checkpoint) -> None:
    with pytest.raises(CalibrationError, match="cannot be read: No such file"):
        read_samples(tmp_path / "none.jsonl", pictures=True, skip_bad=False)
    with pytest.raises(CalibrationError, match="holds no usable sample"):
        read_samples(write_lines(tmp_path, "", "nonsense"), pictures=True, skip_bad=True)
    with pytest.raises(CalibrationError, match=r"line 1: names an image, but .* no vision"):
        read_samples(write_lines(tmp_path, GOOD), pictures=False, skip_bad=False)
    long = read_samples(
        write_lines(tmp_path, {"question": "q " * 3000}), pictures=True, skip_bad=False
    )
    with pytest.raises(CalibrationError, match=r"line 1: has .* tokens; at most 2048"):
        tokenize(long, checkpoint)
    without = Checkpoint.open(write_checkpoint(tmp_path / "d", decoder_only=True, tokenizer=False))
    with pytest.raises(CalibrationError, match=r"no tokenizer.model.*--method mse"):
        tokenize(long, without)


def test_the_decoder_alone(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "c", decoder_only=True)
    checkpoint = Checkpoint.open(source)
    texts = [replace(s, answer=s.answer[:40]) for s in default_samples(demo=None, pictures=False)]
    made = calibrate(checkpoint, plan_of(checkpoint, "gptq"), texts[:4], tmp_path / "h", silent)
    assert made.codes("llm.layers.1.down") is not None and made.codes("llm.embed") is not None


def test_only_what_is_stored_in_4_bits(checkpoint: Checkpoint, tmp_path: Path) -> None:
    plan = plan_of(checkpoint, "gptq", embed="f16_tiled", down="f16_tiled")
    made = calibrate(checkpoint, plan, samples()[:2], tmp_path, silent)
    assert made.codes("llm.embed") is None and made.codes("llm.layers.0.down") is None
    assert made.codes("llm.layers.0.o") is not None


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_programs(monkeypatch)
    monkeypatch.setenv("MINICPMV_CACHE", str(tmp_path / "cache"))
    source = write_checkpoint(tmp_path / "c")
    lines = write_lines(tmp_path, GOOD, "nonsense", {"question": "Hello?", "answer": "Hi."})
    arguments = ("--quant", "small", "--calibration", str(lines))
    assert convert(source, tmp_path / "b", *arguments) == 2
    assert "samples.jsonl, line 2: not a line of JSON" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
    assert convert(source, tmp_path / "b", *arguments, "--skip-bad") == 0
    recipe = Bundle.open(tmp_path / "b").plan.recipe
    assert (recipe.scheme.name, recipe.method, recipe.scheme.max_code) == ("small", "gptq", 15)
    assert convert(source, tmp_path / "plain", "--method", "rtn", "--quant", "small") == 0
    assert Bundle.open(tmp_path / "plain").plan.recipe.scheme.max_code == 14
