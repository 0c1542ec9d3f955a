"""verify's view of weights that a method moved: what passes, and what is found all the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from convert.bundle.manifest import Bundle
from convert.bundle.weights_file import WeightsFile
from convert.bundle.weights_writer import WeightsWriter
from convert.calibrate.built_in import TEXTS
from convert.checkpoint.reader import Checkpoint
from runtime.reference.arithmetic import QuantizedLinear, apply_arithmetic
from runtime.reference.load import load_reference
from runtime.verify.files.stored_weights import load_stored
from runtime.verify.files.weights import BundleTensors, check_tensors, decode_tensor
from runtime.verify.measure.run import load_settings
from tests.support.bundles import convert, without_programs
from tests.support.tiny import write_checkpoint

METHODS = ("mse", "gptq", "awq")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles of one checkpoint, a folder for each method."""
    folder = tmp_path_factory.mktemp("calibrated")
    source = write_checkpoint(folder / "checkpoint", outliers=True, head="different")
    lines = folder / "samples.jsonl"
    texts = sorted(TEXTS.glob("*.jsonl"))[::3]
    lines.write_text("".join(path.read_text("utf-8") for path in texts), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        without_programs(patch)
        patch.setenv("MINICPMV_CACHE", str(folder / "cache"))
        for method in METHODS:
            arguments = ("--method", method, "--calibration", str(lines))
            assert convert(source, folder / method, *arguments) == 0
    return folder


def failures(bundle: Bundle, checkpoint: Checkpoint) -> set[str]:
    thresholds = load_settings()["thresholds"]
    tensors = BundleTensors(bundle.plan, bundle.weights())
    checks = check_tensors(tensors, checkpoint, thresholds, lambda stage, done, total: None)
    assert sum(check.stage == "weights" for check in checks) == len(bundle.plan.tensors)
    return {check.name for check in checks if not check.passed}


@pytest.mark.parametrize("method", METHODS)
def test_every_tensor_passes(method: str, folder: Path) -> None:
    checkpoint = Checkpoint.open(folder / "checkpoint")
    assert failures(Bundle.open(folder / method), checkpoint) == set()


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_tensor_of_another_layer_is_found(method: str, folder: Path, tmp_path: Path) -> None:
    """Layer 1's `o` and norm in layer 0's place: same shapes, other values."""
    shutil.copytree(folder / method, tmp_path / "b")
    weights = WeightsFile(folder / method / "weights.safetensors")
    moved = {"llm.layers.0.o.q_weight", "llm.layers.0.o.q_scale", "llm.layers.0.post_norm.weight"}
    (tmp_path / "b/weights.safetensors").unlink()
    with WeightsWriter(tmp_path / "b/weights.safetensors", weights.specs()) as writer:
        for spec in weights.specs():
            name = spec.name.replace("s.0.", "s.1.") if spec.name in moved else spec.name
            writer.write(spec.name, np.array(weights[name]))
    found = failures(Bundle.open(tmp_path / "b"), Checkpoint.open(folder / "checkpoint"))
    assert found == {"llm.layers.0.o", "llm.layers.0.post_norm.weight"}


@pytest.mark.parametrize("method", METHODS)
def test_the_arithmetic_model_has_the_bundles_weights(method: str, folder: Path) -> None:
    checkpoint, bundle = Checkpoint.open(folder / "checkpoint"), Bundle.open(folder / method)
    model = load_stored(load_reference(checkpoint), BundleTensors(bundle.plan, bundle.weights()))
    apply_arithmetic(model, bundle.plan, stored=True)
    tensors = {tensor.name: tensor for tensor in bundle.plan.tensors}

    def stored(name: str) -> torch.Tensor:
        return decode_tensor(bundle.weights(), tensors[name], bundle.plan.recipe.scheme)

    attention = model.llm.model.layers[1].self_attn
    assert isinstance(attention, torch.nn.Module)
    linears = [attention.get_submodule(f"{p}_proj") for p in "qkv"]
    linears.append(model.llm.lm_head)
    assert all(isinstance(linear, QuantizedLinear) for linear in linears)
    *parts, head = (linear.weight.float() for linear in linears)
    assert torch.equal(torch.cat(parts), stored("llm.layers.1.qkv"))
    assert torch.equal(head, stored("llm.head"))
    assert torch.equal(model.llm.model.embed_tokens.weight.float(), stored("llm.embed"))
    norm = model.llm.model.layers[0].get_parameter("input_layernorm.weight")
    assert torch.equal(norm, stored("llm.layers.0.input_norm.weight"))
