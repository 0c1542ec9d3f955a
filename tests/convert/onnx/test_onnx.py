"""The ONNX export: what is written, and that onnxruntime says what the reference says."""

from __future__ import annotations

import hashlib
import json
import math
import weakref
from pathlib import Path

import onnx
import pytest
import torch
from onnx.external_data_helper import load_external_data_for_model

from convert.bundle.errors import BundleError
from convert.checkpoint.config import CONFIGS, ModelConfig
from convert.checkpoint.reader import Checkpoint
from convert.checkpoint.tensor_tables import Rule, bundle_rules
from convert.onnx import export as onnx_export
from convert.onnx.check import compare_onnx, run_onnx, sample_pixels, sample_sizes
from convert.onnx.export import (
    ALIGNMENT,
    DATA,
    KIND,
    MANIFEST,
    MODEL,
    OnnxReport,
    onnx_bytes,
    write_onnx,
)
from convert.onnx.graph import FEATURES, INPUT, TOKENS, build_graph
from convert.support.output_folder import OutputFolder, OutputFolderError, SpaceError
from quantize.errors import CheckpointError, ConfigError
from runtime.reference.load import VISION, load_reference
from tests.support.compare import Record
from tests.support.tiny import random_state, write_checkpoint
from tests.support.tiny_config import tiny_config

# Both compute in float32, in another order, with erf and exp of their own; measured 7e-7 of the
# output's scale.
FLOAT32_ORDER = 1e-5


def _silent(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


def _write(checkpoint: Checkpoint, folder: Path) -> OnnxReport:
    source = checkpoint.source_hash()
    return write_onnx(checkpoint.read, checkpoint.config, source, folder, _silent)


def _export(checkpoint: Checkpoint, output: Path) -> Path:
    folder = OutputFolder(output, KIND)
    with folder as partial:
        _write(checkpoint, partial)
        folder.commit()
    return folder.path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(write_checkpoint(tmp_path_factory.mktemp("onnx") / "checkpoint"))


@pytest.fixture(scope="module")
def exported(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _export(checkpoint, tmp_path_factory.mktemp("onnx") / "out")


@pytest.mark.parametrize("pictures", [1, 3])
def test_onnxruntime_equals_the_reference(
    checkpoint: Checkpoint, exported: Path, pictures: int, record_property: Record
) -> None:
    assert checkpoint.config.vision is not None
    (size,) = sample_sizes(checkpoint.config.vision)
    pixels = sample_pixels(size, pictures)
    model = load_reference(checkpoint, only=VISION)
    differences = compare_onnx(exported / MODEL, model, [pixels], threads=1)
    assert [difference.output for difference in differences] == [FEATURES, TOKENS]
    for difference in differences:
        name = f"{difference.output} of {pictures}"
        record_property(name, f"max {difference.max_abs:.3g}, relative {difference.relative:.3g}")
        assert difference.scale > 0.1
        assert difference.relative < FLOAT32_ORDER, name


def test_a_wrong_weight_is_noticed(checkpoint: Checkpoint, exported: Path) -> None:
    """The comparison is no formality: one changed bias shows."""
    assert checkpoint.config.vision is not None
    model = load_reference(checkpoint, only=VISION)
    assert model.resampler is not None
    model.resampler.ln_post.bias[5] += 0.01
    pixels = sample_pixels(sample_sizes(checkpoint.config.vision)[0], 1)
    features, tokens = compare_onnx(exported / MODEL, model, [pixels], threads=1)
    assert features.relative < FLOAT32_ORDER < 1e-4 < tokens.relative


def test_every_weight_is_stored_once_and_aligned(checkpoint: Checkpoint, exported: Path) -> None:
    model = onnx.load(exported / MODEL, load_external_data=False)
    places = {}
    for tensor in model.graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries:
            assert entries["location"] == DATA
            places[tensor.name] = (int(entries["offset"]), int(entries["length"]))
    rules = bundle_rules(checkpoint.config, untied_head=False)
    parts = ("vision.", "resampler.")
    assert set(places) == {
        r.name for r in rules if isinstance(r, Rule) and r.name.startswith(parts)
    }
    end = 0
    for offset, length in sorted(places.values()):
        assert offset % ALIGNMENT == 0
        assert 0 <= offset - end < ALIGNMENT
        end = offset + length
    assert (exported / DATA).stat().st_size == end
    assert (exported / MODEL).stat().st_size < 64 * 1024, "the graph holds weights"


def test_weights_are_the_checkpoints(checkpoint: Checkpoint, exported: Path) -> None:
    model = onnx.load(exported / MODEL, load_external_data=False)
    load_external_data_for_model(model, str(exported))
    stored = {
        t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy())
        for t in model.graph.initializer
    }
    qkv = checkpoint.read("vpm.blocks.1.attn.qkv.weight").float()
    assert torch.equal(stored["vision.blocks.1.qkv.weight"], qkv.T)
    patches = checkpoint.read("vpm.patch_embed.proj.weight").float()
    assert torch.equal(stored["vision.patch_embed.weight"], patches)
    assert torch.equal(stored["resampler.proj.weight"], checkpoint.read("resampler.proj").float())


def test_model_passes_the_checker_and_says_what_it_is(
    checkpoint: Checkpoint, exported: Path
) -> None:
    onnx.checker.check_model(exported / MODEL, full_check=True)
    model = onnx.load(exported / MODEL, load_external_data=False)
    props = {entry.key: entry.value for entry in model.metadata_props}
    assert ModelConfig.from_json(json.loads(props["config"])) == checkpoint.config
    assert props["source_sha256"] == checkpoint.source_hash()
    shapes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        INPUT: ["batch", 3, 56, 56],
        TOKENS: ["batch", 9, 256],
        FEATURES: ["batch", 16, 144],
    }


def test_manifest_describes_the_files(checkpoint: Checkpoint, exported: Path) -> None:
    manifest = json.loads((exported / MANIFEST).read_text("utf-8"))
    assert manifest["format"] == KIND.format
    assert manifest["source_sha256"] == checkpoint.source_hash()
    assert {path.name for path in exported.iterdir()} == {*manifest["files"], MANIFEST}
    for name, record in manifest["files"].items():
        content = (exported / name).read_bytes()
        assert record == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    written = sum(path.stat().st_size for path in exported.iterdir())
    assert 0 <= onnx_bytes(checkpoint.config) - written < 2**20


def test_the_same_checkpoint_gives_the_same_bytes(
    checkpoint: Checkpoint, exported: Path, tmp_path: Path
) -> None:
    again = _export(checkpoint, tmp_path / "again")
    for path in exported.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name


def test_one_tensor_is_in_memory_at_a_time(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0
    read = checkpoint.read

    def counting(name: str) -> torch.Tensor:
        nonlocal most
        tensor = read(name).clone()
        alive.add(tensor)
        most = max(most, len(alive))
        return tensor

    monkeypatch.setattr(checkpoint, "read", counting)
    report = _write(checkpoint, tmp_path)
    assert report.tensors == len(build_graph(checkpoint.config).weights)
    assert report.parameters == _count_parameters(checkpoint.config)
    assert report.nbytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    rules = [w.rule for w in build_graph(checkpoint.config).weights]
    assert most <= 1 + max(len(rule.sources) for rule in rules)


def test_the_real_geometry_makes_a_graph() -> None:
    config = ModelConfig.load(CONFIGS / "model" / "minicpm-v-1.0.json")
    weights = build_graph(config).weights
    assert sum(math.prod(weight.shape) for weight in weights) == _count_parameters(config)


def _count_parameters(config: ModelConfig) -> int:
    """Counts by hand what vision encoder and resampler hold."""
    v, r = config.vision, config.resampler
    assert v is not None and r is not None
    block = 4 * v.embed_dim**2 + 2 * v.embed_dim * v.mlp_hidden_dim + v.mlp_hidden_dim
    block += 9 * v.embed_dim  # biases of qkv, proj and fc2, two norms
    vision = v.depth * block + (v.patch_dim + 1 + v.num_patches + 2) * v.embed_dim
    constants = (r.query_num + v.num_patches) * r.embed_dim
    return vision + constants + r.kv_dim * r.embed_dim + 4 * r.embed_dim**2 + 6 * r.embed_dim


def test_a_model_without_vision_is_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "text", decoder_only=True))
    with pytest.raises(ConfigError, match=r"MiniCPMForCausalLM has no vision encoder.*--target"):
        _write(checkpoint, tmp_path)
    assert not list(tmp_path.glob("vision*"))


def test_a_damaged_weight_leaves_nothing_behind(tmp_path: Path) -> None:
    state = random_state(tiny_config())
    state["vpm.blocks.0.mlp.fc1.weight"][3, 4] = torch.nan
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "checkpoint", state=state))
    with pytest.raises(CheckpointError, match=r"vpm\.blocks\.0\.mlp\.fc1\.weight.*damaged"):
        _export(checkpoint, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_an_export_replaces_only_an_export(checkpoint: Checkpoint, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "letter.txt").write_text("dear")
    with pytest.raises(OutputFolderError, match="no ONNX export"):
        _export(checkpoint, foreign)
    assert (foreign / "letter.txt").read_text() == "dear"
    ours = _export(checkpoint, tmp_path / "ours")
    (ours / DATA).write_bytes(b"damaged")
    _export(checkpoint, ours)
    assert (ours / DATA).stat().st_size > 10_000


def test_a_full_disk_leaves_nothing_behind(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(onnx_export.FileRecord, "of", full)
    with pytest.raises(SpaceError, match="disk became full while the ONNX export"):
        _export(checkpoint, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["no graph", "no data", "short data", "not a graph"])
def test_damaged_files_give_one_clear_line(
    checkpoint: Checkpoint, exported: Path, tmp_path: Path, damage: str
) -> None:
    assert checkpoint.config.vision is not None
    for name in (MODEL, DATA):
        (tmp_path / name).write_bytes((exported / name).read_bytes())
    if damage == "no graph":
        (tmp_path / MODEL).unlink()
    elif damage == "no data":
        (tmp_path / DATA).unlink()
    elif damage == "short data":
        (tmp_path / DATA).write_bytes((exported / DATA).read_bytes()[:-5000])
    else:
        (tmp_path / MODEL).write_bytes(b"no graph at all")
    pixels = sample_pixels(sample_sizes(checkpoint.config.vision)[0], 1)
    with pytest.raises(BundleError, match=r"vision\.onnx: onnxruntime cannot run it: .+") as error:
        run_onnx(tmp_path / MODEL, [pixels], threads=1)
    assert "\n" not in str(error.value)
