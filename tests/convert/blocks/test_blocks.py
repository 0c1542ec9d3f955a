"""Every kernel alone against numpy or PyTorch, at awkward shapes; then what compiling reports."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tvm.script.ir_builder import tirx as T

from convert.blocks import linear, maths, rows
from convert.blocks.attention import Heads, attention
from convert.blocks.linear import Linear
from convert.blocks.processors import products
from convert.blocks.tir import kernel, span, store
from convert.blocks.word_attention import word_attention
from convert.bundle.plan import Plan, Recipe, make_plan
from convert.checkpoint.config import ModelConfig
from convert.engine import compile as compiling
from convert.engine.build import BlockLibrary
from convert.engine.compile import Target, Variant, build_blocks, program_id
from quantize.activations import multiply_codes, pad_groups, quantize_activations
from quantize.errors import ConfigError
from quantize.int8 import INT8_GROUP, dequantize_int8, quantize_int8
from quantize.layout import pack_int8_tiles, pack_tiles, tile_f16
from quantize.schemes import dequantize_groups, quantize_groups
from tests.convert.blocks.kernels import PLAIN, Array, Run, attended, compiled, normal
from tests.support.compare import Record, assert_close
from tests.support.processor import processor_features
from tests.support.quantized import SCHEME
from tests.support.tiny_config import tiny_config

HOST = Target.load("host")
ROUNDING = 2e-6  # float32 sums of some hundred products in another order
LENGTHS = (1, 2, 17, 66)


def _apply(function: Callable[[Any], Any], values: Array) -> Array:
    """Runs one of `maths` over an array whose size is a multiple of 16."""
    with kernel("apply") as k:
        x, out = k.tensor("x", values.shape), k.tensor("out", values.shape)
        with T.serial(0, values.size // 16) as i:
            store(out, function(x[span(i * 16)]), span(i * 16))
    result = np.empty_like(values)
    compiled(k.function)([values], [result])
    return result


def test_exp() -> None:
    x = np.linspace(-87, 88, 1 << 16, dtype=np.float32)
    expected = np.exp(x.astype(np.float64))
    assert (np.abs(_apply(maths.exp, x) - expected) <= 3e-7 * expected).all()
    cut = _apply(maths.exp, np.full(16, -1000, np.float32))
    assert ((cut > 0) & (cut < 1e-37)).all()


def test_exp2_to_16_bits() -> None:
    x = np.linspace(-126, 126, 1 << 16, dtype=np.float32)
    expected = np.exp2(x.astype(np.float64))
    assert (np.abs(_apply(maths.exp2, x) - expected) <= 3e-6 * expected).all()


def test_exp2_beside_int8() -> None:
    x = np.linspace(-126, 0, 1 << 16, dtype=np.float32)
    expected = 16380 * np.exp2(x.astype(np.float64))
    rough = _apply(lambda v: maths.rough_exp2(v, 16380), x)
    assert (np.abs(rough - expected) <= 1e-4 * expected).all()
    assert rough.max() < 2**14 - 0.5, "14 bits hold it"


def test_nearest_is_the_even_one_of_two() -> None:
    x = np.arange(-(1 << 15), 1 << 15, dtype=np.float32) / 2
    np.testing.assert_array_equal(_apply(lambda v: maths.nearest(v)[0], x), np.rint(x))
    words = _apply(lambda v: T.cast(maths.nearest(v)[1], "float32x16"), x)
    np.testing.assert_array_equal(words, np.rint(x))


def test_gelu_is_the_exact_one() -> None:
    x = np.linspace(-12, 12, 1 << 16, dtype=np.float32)
    expected = F.gelu(torch.from_numpy(x).double()).numpy()
    error = np.abs(_apply(maths.gelu, x) - expected)
    assert (error <= 1e-6).all()
    # Not the one with tanh, which is 4.7e-4 away.
    assert np.abs(F.gelu(torch.from_numpy(x), approximate="tanh").numpy() - expected).max() > 1e-4


def test_silu() -> None:
    x = np.linspace(-100, 100, 1 << 14, dtype=np.float32)
    expected = F.silu(torch.from_numpy(x).double()).numpy()
    assert (np.abs(_apply(maths.silu, x) - expected) <= 1e-6 * np.abs(expected) + 1e-30).all()


@pytest.mark.parametrize(
    "c",
    [
        Linear(rows=144, columns=48),
        Linear(rows=540, columns=144, bias=True, gelu=True),
        Linear(rows=17, columns=5, bias=True, residual=1.0),
    ],
    ids=["plain", "gelu", "residual"],
)
def test_linear_f16(c: Linear, record_property: Record) -> None:
    weight, bias = normal(c.rows, c.columns).astype(np.float16), normal(c.rows)
    run = compiled(linear.linear_f16(c, products(PLAIN.products)))
    for length in LENGTHS:
        x, residual = normal(length, c.columns), normal(length, c.rows)
        expected = x.astype(np.float64) @ weight.astype(np.float64).T
        inputs = [x, tile_f16(weight)]
        if c.bias:
            inputs.append(bias)
            expected += bias
        if c.gelu:
            expected = F.gelu(torch.from_numpy(expected)).numpy()
        if c.residual is not None:
            inputs.append(residual)
            expected += residual
        out = np.empty((length, c.rows), np.float32)
        run(inputs, [out])
        assert_close(f"linear_f16 of {length}", out, expected, ROUNDING, record_property)


SIZE = SCHEME.group_size


def _quantizer(width: int, size: int, zero_point: int) -> Callable[[Array], list[Array]]:
    """Compiles the kernel that quantizes activations: codes, scale, offset."""
    run = compiled(rows.quantize(rows.given(width), size, zero_point))
    return lambda x: _codes(run, [x], width, size)


def _codes(run: Run, inputs: list[Array], width: int, size: int) -> list[Array]:
    length, groups = len(inputs[0]), -(-width // size)
    outputs = [
        np.empty((length, groups, size), np.int8),
        np.empty((length, groups), np.float32),
        np.empty((length, groups), np.int32),
    ]
    run(inputs, outputs)
    return outputs


@pytest.mark.parametrize(
    ("width", "size", "zero_point"), [(96, 32, 7), (80, 32, 0), (65, 128, 128), (300, 128, 128)]
)
def test_activations_are_quantized_to_the_bit(width: int, size: int, zero_point: int) -> None:
    x = normal(17, width) * 100
    x[3, 32:64], x[4] = 0, np.arange(width) - 63.5  # a group of zeros; ties
    codes, scale, offset = _quantizer(width, size, zero_point)(x)
    expected, expected_scale = quantize_activations(pad_groups(x, size), size)
    sums = expected.reshape(codes.shape).sum(-1, dtype=int)
    np.testing.assert_array_equal(codes.reshape(expected.shape), expected)
    np.testing.assert_array_equal(scale, expected_scale)
    np.testing.assert_array_equal(offset, -zero_point * sums)


def _runs_here(variant: Variant) -> bool:
    # TVM alone lacks the kernels of matrix units, which are a part of the engine.
    alone = products(variant.products).several is None
    return alone and set(variant.requires) <= processor_features()


HERE = [v for t in ("host", "android-x86_64") for v in Target.load(t).variants if _runs_here(v)]


@pytest.mark.parametrize("residual", [None, 0.7])
@pytest.mark.parametrize("variant", HERE, ids=lambda variant: variant.products)
def test_linear_of_4_bit_codes(
    variant: Variant, residual: float | None, record_property: Record
) -> None:
    c = Linear(rows=501, columns=320, residual=residual)
    q, q_scale = quantize_groups(_weight(c), SCHEME, name="w")
    q[0], q[1] = 15, 0  # all 16 codes decode
    by = products(variant.products).q4
    kernel = linear.linear_codes(c, SIZE, by, 4, "uint8")
    signed = q.astype(np.int8) - np.int8(SCHEME.zero_point)
    weight = pack_tiles(q, q_scale, SCHEME)
    _check_linear(c, variant, kernel, SCHEME.zero_point, weight, (signed, q_scale), record_property)


@pytest.mark.parametrize("columns", [384, 337, 4])
@pytest.mark.parametrize("variant", HERE, ids=lambda variant: variant.products)
def test_linear_of_int8_codes(variant: Variant, columns: int, record_property: Record) -> None:
    c = Linear(rows=485, columns=columns, bias=True, gelu=True, residual=1.0)
    codes, scale = quantize_int8(_weight(c), name="w")
    codes[0, :columns], codes[1, :columns] = 127, -127  # the largest sums
    by = products(variant.products).q8
    kernel = linear.linear_codes(c, INT8_GROUP, by, INT8_GROUP // 4, "int8")
    weight = pack_int8_tiles(codes, scale)
    _check_linear(c, variant, kernel, by.bias, weight, (codes, scale), record_property)


def _weight(c: Linear) -> Array:
    return normal(c.rows, c.columns).astype(np.float16)


def _check_linear(
    c: Linear,
    variant: Variant,
    kernel: Any,
    zero_point: int,
    weight: tuple[Array, Array],
    codes: tuple[Array, Array],
    record: Record,
) -> None:
    """Compares a product of codes at every length with what numpy says of whole numbers."""
    size = codes[0].shape[1] // codes[1].shape[1]
    run, quantize = compiled(kernel, variant), _quantizer(c.columns, size, zero_point)
    for length in LENGTHS:
        x, residual, bias = normal(length, c.columns), normal(length, c.rows), normal(c.rows)
        x[0] = 127  # with the largest codes: the largest sums that 16-bit words must hold
        inputs = [*quantize(x), *weight]
        expected = multiply_codes(*quantize_activations(pad_groups(x, size), size), *codes)
        if c.bias:
            inputs.append(bias)
            expected = expected + bias
        if c.gelu:
            expected = F.gelu(torch.from_numpy(expected)).numpy()
        if c.residual is not None:
            inputs.append(residual)
            expected = residual + np.float32(c.residual) * expected
        out = np.empty((length, c.rows), np.float32)
        run(inputs, [out])
        assert_close(f"linear of {length}", out, expected, ROUNDING, record)


@pytest.mark.parametrize("form", ["q4", "q8", "f16_tiled"])
def test_embedding_is_exact(form: str) -> None:
    width = 96 if form == "q4" else 77
    table, ids = normal(501, width).astype(np.float16), np.array([0, 15, 16, 500, 7, 7], np.int32)
    if form == "q4":
        codes = quantize_groups(table, SCHEME, name="e")
        weight, expected = pack_tiles(*codes, SCHEME), dequantize_groups(*codes, SCHEME)
        kernel = rows.embedding_codes(501, width, 12.0, SIZE, SCHEME.zero_point)
    elif form == "q8":
        codes = quantize_int8(table, name="e")
        weight, expected = pack_int8_tiles(*codes), dequantize_int8(*codes, width)
        kernel = rows.embedding_codes(501, width, 12.0, INT8_GROUP, None)
    else:
        weight, expected = (tile_f16(table),), table.astype(np.float32)
        kernel = rows.embedding_f16(501, width, 12.0)
    out = np.empty((6, width), np.float32)
    compiled(kernel)([ids, *weight], [out])
    np.testing.assert_array_equal(out, expected[ids] * np.float32(12))


def _rows(source: rows.RowSource, inputs: list[Array]) -> Array:
    """Returns a source's rows, after a look at what it gives where it is rounded at once."""
    out = np.empty((len(inputs[0]), source.width), np.float32)
    compiled(rows.write(source))(inputs, [out])
    size = 32
    run = compiled(rows.quantize(source, size, 7))
    expected = _quantizer(source.width, size, 7)(out)
    for made, apart in zip(_codes(run, inputs, source.width, size), expected, strict=True):
        np.testing.assert_array_equal(made, apart)
    return out


@pytest.mark.parametrize("width", [144, 10, 1])
def test_layer_norm(width: int, record_property: Record) -> None:
    x, weight, bias = normal(5, width) + 3, normal(width), normal(width)
    out = _rows(rows.layer_norm(width, 1e-6), [x, weight, bias])
    wide = [torch.from_numpy(t).double() for t in (x, weight, bias)]
    expected = F.layer_norm(wide[0], (width,), *wide[1:], eps=1e-6)
    assert_close("layer_norm", out, expected, ROUNDING, record_property)


@pytest.mark.parametrize("divisor", [1.0, 9.0])
def test_rms_norm(divisor: float, record_property: Record) -> None:
    x, weight = normal(5, 96), normal(96).astype(np.float16)
    out = _rows(rows.rms_norm(96, 1e-5, divisor), [x, weight])
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5) * weight / divisor
    assert_close("rms_norm", out, expected, ROUNDING, record_property)


@pytest.mark.parametrize("width", [96, 21])
def test_gate(width: int, record_property: Record) -> None:
    x = normal(5, 2 * width) * 4
    out = _rows(rows.gate(width), [x])
    gates, values = torch.from_numpy(x).double().chunk(2, -1)
    assert_close("gate", out, F.silu(gates) * values, ROUNDING, record_property)


HEADS = [(2, 72), (3, 16), (1, 10)]
# Of one kernel: less than a tile, whole tiles, whole runs of words, and beyond each of them.
QUERIES_AND_KEYS = [(9, 36), (1, 1), (5, 33), (70, 16), (3, 64), (2, 65), (64, 333)]


@pytest.mark.parametrize(("heads", "dim"), HEADS)
def test_attention(heads: int, dim: int, record_property: Record) -> None:
    width = heads * dim
    k, v = Heads(2 * width + 1, 1), Heads(2 * width + 1, width + 1)
    run = compiled(attention(heads, dim, Heads(width), k, v, block=4))
    for queries, keys in QUERIES_AND_KEYS:
        q, packed = normal(queries, width) * 3, normal(keys, 2 * width + 1)
        out = np.empty_like(q)
        run([q, packed, packed], [out])
        expected = attended(q, packed, heads)
        assert_close(f"{queries} to {keys}", out, expected, ROUNDING, record_property)


@pytest.mark.parametrize("variant", HERE, ids=lambda variant: variant.products)
@pytest.mark.parametrize(("heads", "dim"), HEADS)
def test_word_attention(variant: Variant, heads: int, dim: int, record_property: Record) -> None:
    """Off by roundings of 10 to 15 bits, and by nothing more."""
    width = heads * dim
    k, v = Heads(2 * width + 1, 1), Heads(2 * width + 1, width + 1)
    pairs = products(variant.products).pairs
    assert pairs is not None
    run = compiled(word_attention(heads, dim, Heads(width), k, v, pairs, 333), variant)
    for queries, keys in QUERIES_AND_KEYS:
        q, packed = normal(queries, width) * 3, normal(keys, 2 * width + 1)
        q[0] = 0  # every key alike
        q[1:2] *= 1e5  # one key has all the weight, as much as 15 bits hold
        out = np.empty_like(q)
        run([q, packed, packed], [out])
        name, expected = f"{queries} to {keys}", attended(q, packed, heads)
        assert_close(name, out, expected, 3e-3, record_property)
        mean = packed[:, width + 1 :].mean(0)
        assert_close(f"{name}, keys alike", out[0], mean, 3e-3, record_property)


@pytest.mark.parametrize(("rows_of", "columns"), [(1, 1), (1, 9), (7, 1), (5, 3)])
def test_patches_go_row_by_row(rows_of: int, columns: int) -> None:
    vision = _config().vision
    assert vision is not None
    size = vision.patch_size
    pixels = normal(3, rows_of * size, columns * size)
    cut = pixels.reshape(3, rows_of, size, columns, size).transpose(1, 3, 0, 2, 4)
    out = np.empty((rows_of * columns, vision.patch_dim), np.float32)
    compiled(rows.patches(vision))([pixels], [out])
    np.testing.assert_array_equal(out, cut.reshape(out.shape))


def _config(**overrides: Any) -> ModelConfig:
    return ModelConfig.from_json(tiny_config(**overrides))


def _plan(config: ModelConfig, **formats: str) -> Plan:
    raw = dict(Recipe.load("q4f16_1").source)
    changed = [{"pattern": k, "format": v, "why": "test"} for k, v in formats.items()]
    return make_plan(config, False, Recipe.from_json({**raw, "tensors": changed + raw["tensors"]}))


def test_functions_of_both_architectures() -> None:
    layer, block = "_q4" * 4, "_q8" * 4
    decoder = ("embed", f"decoder_layer{layer}", f"decoder_step{layer}", "lm_head")
    config = _config(decoder_only=True)
    assert build_blocks(config, _plan(config), PLAIN)[1] == decoder
    vision = ("vision_embed", f"vision_block{block}", "vision_norm", "resampler")
    assert build_blocks(_config(), _plan(_config()), PLAIN)[1] == (*vision, *decoder)


def test_program_id_follows_from_what_is_in_a_program(tmp_path: Path) -> None:
    def library(prefix: str = "plain_", **texts: str) -> BlockLibrary:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        paths = [folder / f"{name}.o" for name in texts]
        for path, text in zip(paths, texts.values(), strict=True):
            path.write_text(text)
        return BlockLibrary(prefix=prefix, requires=("avx2",), objects=tuple(paths))

    first, second = library(lib0="code", devc="data"), library("other_", lib0="code")
    identity = program_id([first, second], HOST)
    assert len(identity) == 64
    assert program_id([library(lib0="code", devc="data"), second], HOST) == identity
    changed = replace(HOST, description="another", variants=())
    assert program_id([first, second], changed) == identity  # nothing that is in the file
    others = [
        [library(lib0="c0de", devc="data"), second],
        [library(lib0="code", devc="dat4"), second],
        [library(lib0="data", devc="code"), second],
        [library(lib0="code"), second],
        [replace(first, requires=("avx512f",)), second],
        [second, first],
        [first],
    ]
    identities = [program_id(libraries, HOST) for libraries in others]
    identities.append(program_id([first, second], replace(HOST, name="another")))
    assert len({identity, *identities}) == len(identities) + 1


def test_refuses_formats_without_kernels() -> None:
    config = _config()
    with pytest.raises(ConfigError, match=r"llm.layers.\*.o has the format f32, which no kernel"):
        build_blocks(config, _plan(config, **{"llm.layers.*.o": "f32"}), PLAIN)
    with pytest.raises(ConfigError, match=r"llm.layers.\*.o has the format f16, which no kernel"):
        build_blocks(config, _plan(config, **{"llm.layers.1.o": "f16"}), PLAIN)


def test_each_combination_of_formats_is_compiled_once() -> None:
    """Two layers with one raised tensor, and two vision blocks: functions, not kernels, double."""
    config = _config()
    mixed = _plan(config, **{"llm.layers.1.down": "q8", "vision.blocks.0.fc1.weight": "f16_tiled"})
    _, functions = build_blocks(config, mixed, PLAIN)
    assert [name for name in functions if name.startswith(("vision_block", "decoder"))] == [
        "vision_block_q8_q8_f16_tiled_q8",
        "vision_block_q8_q8_q8_q8",
        "decoder_layer_q4_q4_q4_q4",
        "decoder_step_q4_q4_q4_q4",
        "decoder_layer_q4_q4_q4_q8",
        "decoder_step_q4_q4_q4_q8",
    ]


def test_targets_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"'pdp11' is unknown; known: .*host"):
        Target.load("pdp11")
    monkeypatch.setattr(compiling, "TARGETS", tmp_path)
    (tmp_path / "host.json").write_text(json.dumps({"name": "host", "cpu": "z80"}))
    with pytest.raises(ConfigError, match="target host: has the keys cpu, name; expected"):
        Target.load("host")
    whole = {"name": "host", "description": "", "link": "", "variants": [{"name": "z80"}]}
    (tmp_path / "host.json").write_text(json.dumps(whole))
    with pytest.raises(ConfigError, match="a variant: has the keys name; expected"):
        Target.load("host")
