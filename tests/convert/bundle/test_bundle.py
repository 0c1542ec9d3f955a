import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from convert.bundle.errors import BundleError
from convert.bundle.manifest import Bundle
from convert.checkpoint.reader import Checkpoint
from quantize.int8 import quantize_int8
from quantize.layout import unpack_int8_tiles, unpack_tiles, untile_f16
from quantize.schemes import quantize_groups
from tests.support.bundles import snapshot, write_bundle

Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("whole") / "bundle")


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "bundle"))


def edit(change: Callable[[dict[str, Any]], Any]) -> Change:
    """Returns what changes a bundle's manifest."""

    def apply(bundle: Path) -> None:
        path = bundle / "bundle.json"
        raw = json.loads(path.read_text("utf-8"))
        change(raw)
        path.write_text(json.dumps(raw), "utf-8")

    return apply


def put(*keys: str, value: Any) -> Change:
    def change(raw: dict[str, Any]) -> None:
        for key in keys[:-1]:
            raw = raw[key]
        raw[keys[-1]] = value

    return edit(change)


def overwrite(name: str, at: int, data: bytes) -> Change:
    def apply(bundle: Path) -> None:
        with (bundle / name).open("r+b") as file:
            file.seek(at)
            file.write(data)

    return apply


def swap_names(bundle: Path) -> None:
    """Exchanges two tensors' names of the same length and shape in the weights' header."""
    path = bundle / "weights.safetensors"
    data = path.read_bytes()
    one, two, held = b'"llm.layers.0.o.q_weight"', b'"llm.layers.1.o.q_weight"', b"?" * 25
    path.write_bytes(data.replace(one, held).replace(two, one).replace(held, two))


def link(bundle: Path) -> None:
    target = bundle.parent / "elsewhere"
    (bundle / "tokenizer.model").rename(target)
    (bundle / "tokenizer.model").symlink_to(target)


def test_holds_what_the_checkpoint_says(whole: Path) -> None:
    bundle = Bundle.open(whole)
    checkpoint = Checkpoint.open(whole.with_name("bundle-checkpoint"))
    assert bundle.config == checkpoint.config
    assert bundle.manifest.source.sha256 == checkpoint.source_hash()
    assert Path(bundle.manifest.source.path) == checkpoint.path.resolve()
    assert not bundle.manifest.source.demo
    assert bundle.tokenizer is not None
    assert bundle.program("host").path.read_bytes() == b"program for host"
    weights, scheme = bundle.weights(), bundle.plan.recipe.scheme
    for tensor in bundle.plan.tensors:
        name, rows = tensor.name, tensor.rule.shape[0]
        expected = tensor.rule.make(checkpoint.read).numpy()
        half = expected.astype(np.float16)
        if tensor.format in ("q4", "q8"):
            packed = weights[f"{name}.q_weight"], weights[f"{name}.q_scale"]
            if tensor.format == "q4":
                found, codes = unpack_tiles(*packed, rows), quantize_groups(half, scheme, name=name)
            else:
                found = unpack_int8_tiles(*packed, rows)
                codes = quantize_int8(half, name=name)
            assert_array_equal(found[0], codes[0], err_msg=name)
            assert_array_equal(found[1], codes[1], err_msg=name)
        elif tensor.format == "f16_tiled":
            found = untile_f16(weights[name], rows)
            assert_array_equal(found, half, err_msg=name)
        else:
            assert_array_equal(weights[name], expected.astype(weights[name].dtype), err_msg=name)
    assert len(weights) == len(bundle.plan.stored)


def test_hashes_are_verified_and_progress_ends_at_the_end(bundle: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    Bundle.open(bundle).verify_hashes(lambda *state: seen.append(state))
    unlisted = ("bundle.json", "README.md")
    files = {name: data for name, data in snapshot(bundle).items() if name not in unlisted}
    size = sum(map(len, files.values()))
    assert seen[-1] == ("hash the bundle", size, size)
    path = bundle / "weights.safetensors"
    overwrite(path.name, path.stat().st_size - 1, b"\x55")(bundle)
    opened = Bundle.open(bundle)
    with pytest.raises(BundleError, match=r"weights\.safetensors: altered: its SHA-256"):
        opened.verify_hashes()


def test_can_be_moved(bundle: Path) -> None:
    moved = bundle.rename(bundle.with_name("moved"))
    (bundle.parent / "link").symlink_to(moved)
    assert Bundle.open(bundle.parent / "link").program("host").path.is_file()


def test_another_target_is_said_to_be_missing(whole: Path) -> None:
    with pytest.raises(BundleError, match="no program for target 'android', only for host"):
        Bundle.open(whole).program("android")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (shutil.rmtree, "no such folder"),
        (lambda b: os.remove(b / "bundle.json"), r"bundle\.json: cannot be read: No such file"),
        (lambda b: (b / "bundle.json").write_text("{"), r"bundle\.json: damaged: not JSON"),
        (lambda b: (b / "bundle.json").write_bytes(b"\xff"), r"bundle\.json: damaged: not JSON"),
        (lambda b: (b / "bundle.json").write_text("[" * 9999), r"bundle\.json: damaged"),
        (lambda b: (b / "bundle.json").write_text("[]"), "not a bundle's manifest"),
        (put("format", value="minicpmv-onnx"), "not a bundle's manifest"),
        (put("format_version", value=1), "format version 1; this toolkit reads 2"),
        (put("format_version", value=True), "format version True"),
        (put("surprise", value=1), "contains unknown field `surprise`"),
        (edit(lambda raw: raw.pop("tools")), "missing required field `tools`"),
        (put("files", value=[]), r"Expected `object`, got `array` - at `\$.files`"),
        (put("tools", "torch", value=2), r"Expected `str`, got `int` - at `\$.tools"),
        (put("files", "bundle.js", value={"size": 1}), r"files: bundle\.js: .* field `sha256`"),
        (put("files", "tokenizer.model", "size", value=1.5), r"files: tokenizer\.model: .*`int`"),
        (put("tensors", "llm.norm.weight", "shape", value=["x"]), r"llm\.norm\.weight: .*shape"),
        (
            put("source", "sha256", value=None),
            r"Expected `str`, got `null` .*source.sha256",
        ),
        (edit(lambda raw: raw["files"].pop("weights.safetensors")), "files lacks weights"),
        (edit(lambda raw: raw["files"].pop("engine/host")), "files lacks engine/host"),
        (put("files", "../bundle.json", value={"size": 1, "sha256": ""}), "plain path inside"),
        (put("files", "/etc/passwd", value={"size": 1, "sha256": ""}), "plain path inside"),
        (put("files", "engine/../x", value={"size": 1, "sha256": ""}), "plain path inside"),
        (put("files", "engine\\x", value={"size": 1, "sha256": ""}), "plain path inside"),
        (put("files", "engine//x", value={"size": 1, "sha256": ""}), "plain path inside"),
        (put("files", "", value={"size": 1, "sha256": ""}), "plain path inside"),
        (put("files", "engine", value={"size": 1, "sha256": ""}), "engine: missing"),
        (put("files", "tokenizer.model", "size", value=1), r"tokenizer\.model: altered"),
        (lambda b: os.truncate(b / "weights.safetensors", 9999), r"weights.*: truncated: it has"),
        (lambda b: os.remove(b / "engine" / "host"), r"host: missing"),
        (link, r"tokenizer\.model: a link"),
        (overwrite("weights.safetensors", 8, b"[]"), "its header is not valid JSON"),
        (swap_names, "tensor llm.layers.0.o.q_weight is not as bundle.json"),
        (put("architecture", value="MiniCPMForCausalLM"), "architecture is 'MiniCPMForCausalLM'"),
        (put("model", "hidden_size", value=255), r"bundle\.json: hidden_size 255"),
        (put("model", "num_hidden_layers", value=3), "tensor llm.layers.2.input_norm.weight"),
        (put("quantization", "bits", value=8), "bits 8"),
        (put("kv_cache", value="int4"), "KV cache 'int4' is unknown; known: fp16, int8"),
        (put("kv_cache", value=8), r"Expected `str`, got `int` - at `\$.kv_cache`"),
        (edit(lambda raw: raw.pop("kv_cache")), "missing required field `kv_cache`"),
        (put("quantization", "tensors", value=[]), "says nothing about"),
        (put("tensors", "llm.norm.weight", "nbytes", value=1), "tensor llm.norm.weight does not"),
    ],
)
def test_damage_is_refused_by_name(bundle: Path, change: Change, problem: str) -> None:
    change(bundle)
    with pytest.raises(BundleError, match=problem) as caught:
        Bundle.open(bundle)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        put("format_version", value=0),
        put("format_version", value=1),
        put("format_version", value=None),
        edit(lambda raw: raw.pop("format_version")),
        edit(lambda raw: raw["quantization"].pop("method")),  # of before recipes had one
        put("quantization", "method", value="of tomorrow"),
        put("quantization", "surprise", value=1),
        put("tensors", "llm.norm.weight", "format", value="f99"),
        edit(lambda raw: raw.pop("tools")),
        put("surprise", value=1),
    ],
)
def test_bundles_of_other_versions_say_what_to_do(bundle: Path, change: Change) -> None:
    change(bundle)
    with pytest.raises(BundleError, match=r"bundle\.json.*convert the checkpoint again") as caught:
        Bundle.open(bundle)
    assert "\n" not in str(caught.value)


def test_a_file_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(BundleError, match="x: a file; expected a bundle's folder"):
        Bundle.open(tmp_path / "x")
