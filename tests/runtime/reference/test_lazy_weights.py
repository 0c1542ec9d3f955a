"""Held matrices give what their float32 copies give; files stay mapped and unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convert.bundle.plan import Recipe, make_plan
from convert.checkpoint.reader import Checkpoint
from quantize.int8 import INT8_GROUP, dequantize_int8, quantize_int8
from quantize.schemes import GroupScheme, dequantize_groups, quantize_groups
from runtime.reference import lazy_weights
from runtime.reference.arithmetic import QuantizedLinear, apply_arithmetic, hold_in_format
from runtime.reference.lazy_weights import (
    GroupCodes,
    LazyEmbedding,
    LazyLinear,
    make_lazy,
    multiply,
    row_blocks,
)
from runtime.reference.load import load_reference
from runtime.sessions.backend import ReferenceBackend
from tests.support.tiny import write_checkpoint

ROWS, COLUMNS = 110, 96


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several runs of rows, the last one shorter, in the smallest matrix."""
    monkeypatch.setattr(lazy_weights, "_BLOCK_VALUES", 48 * COLUMNS)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_runs_cover_every_row_once() -> None:
    assert list(row_blocks(110, 96, 10)) == [slice(0, 48), slice(48, 96), slice(96, 110)]
    assert list(row_blocks(110, 96, 99 * 96)) == [slice(0, 96), slice(96, 110)]
    assert list(row_blocks(110, 96, 1 << 18)) == [slice(0, 110)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", [(COLUMNS,), (1, COLUMNS), (2, 5, COLUMNS)])
def test_a_product_is_that_of_the_float32_copy(
    dtype: torch.dtype, biased: bool, shape: tuple[int, ...]
) -> None:
    x, weight = random(*shape), random(ROWS, COLUMNS, seed=1).to(dtype)
    bias = random(ROWS, seed=2) if biased else None
    # Weights are converted exactly; the order of a sum may be another.
    torch.testing.assert_close(
        multiply(x, weight, bias), F.linear(x, weight.float(), bias), rtol=1e-6, atol=1e-5
    )


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("coded", [False, True])
def test_any_number_of_threads_gives_a_product(threads: int, coded: bool) -> None:
    x, weight, bias = random(3, COLUMNS), random(500, COLUMNS, seed=1), random(500, seed=2)
    scheme = GroupScheme.load("q4f16_1")
    kept = hold_in_format(weight, "q4", scheme, "w") if coded else weight.bfloat16()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():  # which is of one thread
            found = multiply(x, kept, bias)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found, F.linear(x, kept.float(), bias), rtol=1e-6, atol=1e-5)


def test_inputs_need_not_lie_in_order() -> None:
    x, weight = random(COLUMNS, 5).T, random(ROWS, COLUMNS, seed=1).bfloat16()
    torch.testing.assert_close(
        multiply(x, weight), F.linear(x, weight.float()), rtol=1e-6, atol=1e-5
    )


@pytest.mark.parametrize(("format", "columns"), [("q4", 96), ("q8", 128), ("q8", 300)])
def test_codes_are_the_numpy_reference_s(format: str, columns: int) -> None:
    scheme = GroupScheme.load("q4f16_1")
    weight = random(ROWS, columns).bfloat16()
    half = weight.half().numpy()
    if format == "q4":
        expected = dequantize_groups(*quantize_groups(half, scheme, name="w"), scheme)
    else:
        assert columns % INT8_GROUP in (0, 44)
        expected = dequantize_int8(*quantize_int8(half, name="w"), columns)
    codes = hold_in_format(weight, format, scheme, "w")
    assert isinstance(codes, GroupCodes)
    assert codes.codes.dtype == torch.int8
    assert codes.shape == (len(codes), columns) == weight.shape
    np.testing.assert_array_equal(codes.float().numpy(), expected)
    np.testing.assert_array_equal(codes[10:20].float().numpy(), expected[10:20])
    x = random(3, columns, seed=1)
    bias = random(ROWS, seed=2)
    torch.testing.assert_close(
        multiply(x, codes, bias),
        F.linear(x, torch.from_numpy(expected), bias),
        rtol=1e-6,
        atol=1e-5,
    )


@pytest.mark.parametrize("coded", [False, True])
def test_embeddings_are_looked_up_in_float32(coded: bool) -> None:
    weight = random(ROWS, COLUMNS).bfloat16()
    scheme = GroupScheme.load("q4f16_1")
    kept = hold_in_format(weight, "q4", scheme, "w") if coded else weight
    ids = torch.tensor([[5, 0, 109], [5, 5, 31]])
    found = LazyEmbedding(kept)(ids)
    assert found.dtype == torch.float32
    assert torch.equal(found, kept.float()[ids])


def test_only_plain_modules_are_replaced() -> None:
    class Own(nn.Linear):
        pass

    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 3), Own(3, 2), nn.ModuleDict({"e": nn.Embedding(5, 4)}))
    make_lazy(model)
    kinds = [type(module) for module in (model[0], model[1], model[2]["e"])]
    assert kinds == [LazyLinear, Own, LazyEmbedding]
    assert model[0].weight.shape == (3, 4) and model[0].bias is not None


@pytest.mark.parametrize(("head", "format"), [("none", "safetensors"), ("different", "bin")])
def test_a_lazy_model_answers_as_a_float32_one(
    tmp_path: Path, head: Literal["none", "different"], format: Literal["safetensors", "bin"]
) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "c", head=head, format=format))
    before = {file: file.read_bytes() for file in checkpoint.files}
    models = [load_reference(checkpoint, lazy=lazy) for lazy in (True, False)]
    kept = models[0]
    assert kept.dtype == torch.float32
    stored = checkpoint.read("llm.model.layers.0.mlp.up_proj.weight").dtype
    assert stored != torch.float32
    assert kept.llm.model.layers[0].get_parameter("mlp.up_proj.weight").dtype == stored
    assert (kept.llm.lm_head.weight is kept.llm.model.embed_tokens.weight) == (head == "none")
    ids = [1, 7, 99, 250, 3]
    outputs, pictures = [], []
    for model in models:
        backend = ReferenceBackend(model)
        cache = backend.new_cache(64, 4)
        outputs.append(backend.logits(backend.forward(backend.embed(ids), cache)))
        pictures.append(backend.encode_image(random(1, 3, 56, 56)))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pictures[0], pictures[1], rtol=1e-4, atol=1e-5)
    assert {file: file.read_bytes() for file in checkpoint.files} == before


def test_the_arithmetic_of_a_lazy_model_is_that_of_a_float32_one(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "c", head="different"))
    plan = make_plan(checkpoint.config, checkpoint.untied_head, Recipe.load("q4f16_1"))
    outputs = []
    for lazy in (True, False):
        model = apply_arithmetic(load_reference(checkpoint, lazy=lazy), plan)
        backend = ReferenceBackend(model)
        hidden = backend.forward(backend.embed([1, 7, 99, 250, 3]), backend.new_cache(64, 4))
        outputs.append((backend.logits(hidden), backend.encode_image(random(1, 3, 56, 56))))
    for one, other in zip(*outputs, strict=True):
        assert torch.equal(one, other)


def test_no_linear_of_either_model_is_kept_in_float32(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "c", head="different"))
    plan = make_plan(checkpoint.config, checkpoint.untied_head, Recipe.load("q4f16_1"))
    reference = load_reference(checkpoint, lazy=True)
    arithmetic = apply_arithmetic(load_reference(checkpoint, lazy=True), plan)
    matrices = [
        module.weight
        for model in (reference, arithmetic)
        for module in model.modules()
        if isinstance(module, nn.Linear | LazyEmbedding | QuantizedLinear)
    ]
    kinds = [m.codes.dtype if isinstance(m, GroupCodes) else m.dtype for m in matrices]
    assert set(kinds) == {torch.bfloat16, torch.float16, torch.int8}
    layers = checkpoint.config.decoder.num_hidden_layers
    assert kinds.count(torch.int8) > 7 * layers


def test_held_is_for_the_cpu(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "c"))
    with pytest.raises(AssertionError):
        load_reference(checkpoint, device="mps", lazy=True)
