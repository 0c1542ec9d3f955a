import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from convert import encode, pipeline
from convert.bundle.manifest import Bundle
from convert.bundle.plan import Recipe, make_plan
from convert.checkpoint.config import ModelConfig
from convert.conversion import bundle_product, bundle_writer
from convert.onnx import product as onnx_product
from convert.support import output_folder
from quantize.errors import ConfigError, ShapeError
from tests.support.bundles import convert, snapshot, without_programs, write_bundle
from tests.support.tiny import random_state, write_checkpoint
from tests.support.tiny_config import tiny_config

# Converts, but reaches the compiler and stays there.
STUCK = """
import contextlib, sys, time
from convert import cli
from convert.conversion import bundle_writer

def build_program(*arguments, **more):
    print("compiling", flush=True)
    time.sleep(60)

bundle_writer.compile_ahead = lambda *_: contextlib.nullcontext()
bundle_writer.build_program = build_program
sys.exit(cli.main(["convert", sys.argv[1], "-o", sys.argv[2], "--method", "rtn"]))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(autouse=True)
def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    without_programs(monkeypatch)


def refused(captured: pytest.CaptureFixture[str]) -> str:
    """Returns the one line that an error left on stderr."""
    lines = [line for line in captured.readouterr().err.splitlines() if "Error: " in line]
    assert len(lines) == 1
    return lines[0]


def test_the_same_bytes_every_time(checkpoint: Path, tmp_path: Path) -> None:
    assert convert(checkpoint, tmp_path / "a") == convert(checkpoint, tmp_path / "b") == 0
    files = snapshot(tmp_path / "a")
    assert files == snapshot(tmp_path / "b")
    assert set(files) == {
        "README.md", "bundle.json", "engine/host", "generation.json", "tokenizer.model",
        "weights.safetensors",
    }  # fmt: skip


def test_the_same_weights_from_any_file_format(checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "a")
    sharded = write_checkpoint(tmp_path / "sharded", format="bin", shards=3)
    assert convert(sharded, tmp_path / "b") == 0
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


def test_a_head_of_its_own_is_kept(tmp_path: Path) -> None:
    bundle = Bundle.open(write_bundle(tmp_path / "b", head="different"))
    assert bundle.manifest.tensors["llm.head"].format == "q4"


def test_decoder_only_without_a_tokenizer(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "b", decoder_only=True, tokenizer=False)
    bundle = Bundle.open(path)
    assert bundle.tokenizer is None
    assert all(name.startswith("llm.") for name in bundle.weights())


def test_json_summary(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert convert(checkpoint, tmp_path / "b", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["weights_bytes"] == (tmp_path / "b" / "weights.safetensors").stat().st_size
    assert summary["bits_per_weight"] == pytest.approx(
        8 * summary["weights_bytes"] / summary["parameters"], abs=1e-3
    )
    assert summary["peak_rss_bytes"] > summary["weights_bytes"]


def test_every_tensor_is_shown_before_work(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(checkpoint, tmp_path / "b", "--verbose") == 0
    shown = capsys.readouterr().out
    plan = Bundle.open(tmp_path / "b").plan
    for tensor in plan.tensors:
        line = next(line for line in shown.splitlines() if line.startswith(f"{tensor.name} "))
        assert tensor.format in line
        assert tensor.why in line


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            ["--target", "hosst"],
            "target 'hosst' is unknown; known: android-arm64, android-x86_64, host, onnx",
        ),
        (["--target", "host,host"], "one is named twice"),
        (["--target", ""], "target '' is unknown"),
        (["--quant", "q3"], "recipe 'q3' is unknown; known: .*q4f16_1"),
    ],
)
def test_unknown_names(
    checkpoint: Path, tmp_path: Path, arguments: list[str], problem: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert convert(checkpoint, tmp_path / "b", *arguments) == 2
    assert re.search(problem, refused(capsys))
    assert not os.listdir(tmp_path)


def test_no_onnx_of_a_decoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_checkpoint(tmp_path / "c", decoder_only=True)
    assert convert(source, tmp_path / "b", "--target", "onnx") == 2
    assert "has no vision encoder" in refused(capsys)
    assert os.listdir(tmp_path) == ["c"]


def test_onnx_beside_a_bundle_and_alone(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(checkpoint, tmp_path / "b", "--target", "host,onnx", "--json") == 0
    differences = json.loads(capsys.readouterr().out)["onnx"]["differences"]
    assert max(differences.values()) < 1e-5
    assert sorted(os.listdir(tmp_path)) == ["b", "b-onnx"]
    assert convert(checkpoint, tmp_path / "alone", "--target", "onnx") == 0
    assert snapshot(tmp_path / "alone") == snapshot(tmp_path / "b-onnx")
    assert convert(checkpoint, tmp_path / "b", "--target", "onnx") == 2
    assert "b: exists but holds no ONNX export" in refused(capsys)


@pytest.mark.parametrize("targets", ["onnx", "host,onnx"])
def test_an_onnx_that_differs_is_not_written_nor_what_is_asked_for_with_it(
    checkpoint: Path,
    tmp_path: Path,
    targets: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(onnx_product, "TOLERANCE", 1e-12)
    assert convert(checkpoint, tmp_path / "b", "--target", targets) == 2
    assert "away from the reference; at most 1e-12 is allowed" in refused(capsys)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("tensor", "value"),
    [
        ("llm.model.layers.1.self_attn.k_proj.weight", float("nan")),
        ("llm.model.embed_tokens.weight", float("inf")),
        ("vpm.blocks.2.mlp.fc1.weight", float("-inf")),
        ("resampler.attn.in_proj_bias", float("nan")),
        ("vpm.blocks.0.attn.proj.weight", 1e6),  # beyond float16
        ("llm.model.layers.0.mlp.down_proj.weight", -1e6),
    ],
)
def test_values_that_are_no_numbers(
    tmp_path: Path, tensor: str, value: float, capsys: pytest.CaptureFixture[str]
) -> None:
    state = random_state(tiny_config())
    state[tensor].view(-1)[5] = value
    if "embed_tokens" in tensor:
        state["llm.lm_head.weight"] = state[tensor].clone()
    source = write_checkpoint(tmp_path / "c", state=state, dtype=torch.float32)
    assert convert(source, tmp_path / "b") == 2
    line = refused(capsys)
    assert tensor in line
    assert str(source) in line
    assert os.listdir(tmp_path) == ["c"]


@pytest.fixture
def existing(checkpoint: Path, tmp_path: Path) -> tuple[Path, dict[str, bytes]]:
    assert convert(checkpoint, tmp_path / "b") == 0
    return tmp_path / "b", snapshot(tmp_path / "b")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "full"), ValueError])
@pytest.mark.parametrize(
    ("module", "where"),
    [
        (bundle_writer, "build_program"),
        (encode, "encode"),
        (bundle_product, "open_journal"),
        (bundle_writer, "_file_records"),
    ],
)
def test_an_interruption_anywhere_leaves_the_old_bundle(
    checkpoint: Path,
    existing: tuple[Path, dict[str, bytes]],
    error: Any,
    module: Any,
    where: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(module, where, fail)
        assert convert(checkpoint, existing[0]) == (130 if error is KeyboardInterrupt else 2)
    assert snapshot(existing[0]) == existing[1]
    # What --resume can go on with stays, unless the same error would come again.
    kept = where in ("build_program", "_file_records") and error is not ValueError
    assert len(os.listdir(existing[0].parent)) == 1 + kept
    assert convert(checkpoint, existing[0]) == 0
    assert os.listdir(existing[0].parent) == ["b"]


def test_a_full_disk_is_one_line(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    usage = namedtuple("usage", "free")(1_000_000)
    monkeypatch.setattr(output_folder.shutil, "disk_usage", lambda _: usage)
    assert convert(checkpoint, tmp_path / "b") == 2
    assert "the disk has 1 MiB free, the bundle takes about" in refused(capsys)
    assert not os.listdir(tmp_path)


def test_a_signal_leaves_the_old_bundle_and_what_can_go_on(
    checkpoint: Path, existing: tuple[Path, dict[str, bytes]]
) -> None:
    command = [sys.executable, "-c", STUCK, str(checkpoint), str(existing[0])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert b"compiling\n" in iter(process.stdout.readline, b"")
        assert len(os.listdir(existing[0].parent)) == 2
        process.terminate()
        process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert snapshot(existing[0]) == existing[1]
    assert convert(checkpoint, existing[0], "--resume") == 0
    assert snapshot(existing[0]) == existing[1]
    assert os.listdir(existing[0].parent) == ["b"]


def test_a_bundle_that_is_damaged_may_be_replaced_other_folders_not(
    checkpoint: Path, existing: tuple[Path, dict[str, bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    path, files = existing
    (path / "weights.safetensors").unlink()
    assert convert(checkpoint, path) == 0
    assert snapshot(path) == files
    (path / "notes.txt").write_text("mine")
    assert convert(checkpoint, path) == 2
    assert "holds notes.txt" in refused(capsys)
    shutil.copytree(checkpoint, path.parent / "c")
    assert convert(checkpoint, path.parent / "c") == 2
    assert "exists but holds no bundle" in refused(capsys)
    assert snapshot(path.parent / "c") == snapshot(checkpoint)


def recipe(**changes: Any) -> Recipe:
    return Recipe.from_json({**Recipe.load("q4f16_1").source, **changes})


def test_plans_of_unfitting_recipes() -> None:
    config = ModelConfig.from_json(tiny_config())
    rows = recipe().source["tensors"]
    with pytest.raises(ConfigError, match=r"says nothing about tensor vision\.patch_embed"):
        make_plan(config, False, recipe(tensors=rows[:7]))
    everything = [{"pattern": "*", "format": "q4", "why": "small"}]
    with pytest.raises(ShapeError, match=r"q4 needs a matrix whose width is a multiple of 32"):
        make_plan(config, False, recipe(tensors=everything))
    for problem, tensors in (
        ("unknown formats q9", [{"pattern": "*", "format": "q9", "why": ""}]),
        ("must be a list", [{"pattern": "*"}]),
        ("must be a list", {}),
    ):
        with pytest.raises(ConfigError, match=problem):
            recipe(tensors=tensors)
    with pytest.raises(ConfigError, match="has the keys"):
        recipe(surprise=1)


def test_convert_from_python_is_the_command(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages: list[tuple[str, int, int]] = []
    targets = ["host", "android-arm64", "onnx", "mlc-android"]
    summary = pipeline.convert(
        checkpoint,
        tmp_path / "b",
        target=targets,
        method="rtn",
        progress=lambda *state: stages.append(state),
    )
    assert summary.bundle is not None and summary.onnx is not None and summary.mlc is not None
    assert list(summary.bundle.programs) == ["host", "android-arm64"]
    assert summary.bundle.path == tmp_path / "b"
    assert summary.onnx.path == tmp_path / "b-onnx"
    assert summary.mlc.path == tmp_path / "b-mlc"
    assert ("weights", summary.bundle.weights_bytes, summary.bundle.weights_bytes) in stages
    assert {"hash checkpoint", "ONNX weights", "MLC weights"} <= {stage for stage, _, _ in stages}
    made = {name: snapshot(tmp_path / name) for name in os.listdir(tmp_path)}
    assert set(made) == {"b", "b-onnx", "b-mlc"}

    capsys.readouterr()
    assert convert(checkpoint, tmp_path / "c", "--target", ",".join(targets), "--json") == 0
    by_command = json.loads(capsys.readouterr().out)
    assert {name: snapshot(tmp_path / name.replace("b", "c", 1)) for name in made} == made
    by_python = summary.to_json()
    taken = ("phases", "seconds", "processor_seconds", "peak_rss_bytes")
    assert set(by_python) == set(by_command)
    assert list(by_python["phases"]) == list(by_command["phases"])
    for values in (by_python, by_command):
        for name in taken:
            assert values.pop(name)
    text = json.dumps(by_python).replace(f"{tmp_path}/b", f"{tmp_path}/c")
    assert json.loads(text) == by_command


def test_convert_from_python_says_what_it_refuses(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="target 'hosst' is unknown; known: android-arm64"):
        pipeline.convert(checkpoint, tmp_path / "b", target=["hosst"])
    with pytest.raises(ConfigError, match="target '' is unknown"):
        pipeline.convert(checkpoint, tmp_path / "b", target=[])
    with pytest.raises(ConfigError, match="--kv is for bundles; choose a target such as host"):
        pipeline.convert(checkpoint, tmp_path / "b", target="onnx", kv="int8")
    summary = pipeline.convert(checkpoint, tmp_path / "b", target="onnx")
    assert summary.bundle is None and summary.mlc is None and summary.onnx is not None
    assert os.listdir(tmp_path) == ["b"]


class _Broken(onnx_product.OnnxProduct):
    """A product that fails when it is put in its place."""

    @contextmanager
    def make(self, conversion: Any) -> Iterator[None]:
        yield
        raise ConfigError("cannot be put in its place")


def test_what_a_cross_check_follows_does_not_appear_without_it(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, _, mlc = pipeline.PRODUCTS
    monkeypatch.setattr(pipeline, "PRODUCTS", (bundle, _Broken, mlc))
    with pytest.raises(ConfigError, match="cannot be put in its place"):
        pipeline.convert(checkpoint, tmp_path / "b", target="host,onnx,mlc-android", method="rtn")
    assert not os.listdir(tmp_path)
    monkeypatch.setattr(_Broken, "is_cross_check", False)
    with pytest.raises(ConfigError, match="cannot be put in its place"):
        pipeline.convert(checkpoint, tmp_path / "b", target="host,onnx,mlc-android", method="rtn")
    assert os.listdir(tmp_path) == ["b"]
