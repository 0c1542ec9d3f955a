"""The tables: each tensor once, each transform against independent arithmetic."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from convert.checkpoint.config import CONFIGS, ModelConfig
from convert.checkpoint.positions import interpolate_grid, resample_grid, sincos_grid
from convert.checkpoint.reader import Checkpoint
from convert.checkpoint.tensor_tables import (
    ANY_GRID,
    Drop,
    Rule,
    bundle_rules,
    reference_rules,
    shape_fits,
    sources,
)
from convert.checkpoint.transforms import (
    flatten_patches,
    resample_positions,
    stack_rows,
    third,
    transpose,
)
from quantize.errors import CheckpointError, ShapeError
from runtime.reference.load import load_reference
from runtime.reference.model import MiniCPMV
from tests.support.compare import assert_close
from tests.support.slices import slices_config
from tests.support.tiny import random_state, write_checkpoint
from tests.support.tiny_config import tiny_config

HEAD = "llm.lm_head.weight"
CONFIG_FILES = ("model/minicpm-v-1.0.json", "model/minicpm-v-2.0.json", "demo/config.json")


def configs():
    yield "tiny", ModelConfig.from_json(tiny_config())
    yield "decoder only", ModelConfig.from_json(tiny_config(decoder_only=True))
    yield "grouped heads", ModelConfig.from_json(tiny_config(num_key_value_heads=2))
    for file in CONFIG_FILES:
        yield file, ModelConfig.load(CONFIGS / file)


CONFIGURATIONS = [pytest.param(config, id=name) for name, config in configs()]


def rows(table):
    return [row for row in table if isinstance(row, Rule)]


def bundle(state, config, untied_head=False):
    table = rows(bundle_rules(config, untied_head))
    return {rule.name: rule.make(state.__getitem__) for rule in table}


@pytest.mark.parametrize("config", CONFIGURATIONS)
@pytest.mark.parametrize("untied_head", [False, True])
def test_tables_use_every_source_and_name_each_result_once(config, untied_head):
    for table in (reference_rules, bundle_rules):
        rules = rows(table(config, untied_head))
        names = [rule.name for rule in rules]
        used = {source for rule in rules for source in rule.sources}
        assert len(names) == len(set(names))
        assert used == set(sources(config)) | ({HEAD} if untied_head else set())


@pytest.mark.parametrize("config", CONFIGURATIONS)
def test_reference_rules_make_the_parameters_of_the_module(config):
    with torch.device("meta"):
        module = MiniCPMV(config)
    expected = {name: tuple(t.shape) for name, t in module.state_dict().items() if name != HEAD}
    rules = rows(reference_rules(config, untied_head=False))
    assert {rule.name: rule.shape for rule in rules} == expected


@pytest.mark.parametrize("grouped", [False, True])
def test_sources_are_what_a_checkpoint_holds(grouped):
    raw = tiny_config(num_key_value_heads=2 if grouped else 4)
    state = random_state(raw, head="none")
    expected = sources(ModelConfig.from_json(raw))
    assert set(state) == set(expected)
    assert all(shape_fits(tuple(t.shape), expected[name]) for name, t in state.items())


@pytest.mark.parametrize("config", CONFIGURATIONS)
def test_dropped_tensors_are_never_sources(config):
    for table in (reference_rules, bundle_rules):
        dropped = [row for row in table(config, False) if isinstance(row, Drop)]
        assert all(row.reason for row in dropped)
        assert not [n for n in sources(config) for row in dropped if row.matches(n)]


def test_real_model_counts_its_parameters():
    config = ModelConfig.load(CONFIGS / CONFIG_FILES[0])
    total = sum(int(np.prod(rule.shape)) for rule in rows(reference_rules(config, False)))
    # The original port's manifest has 3.155 B: it stores the resampler's key positions too.
    assert total == 3_152_482_720
    assert round((total + 1024 * 2304) / 1e6) == 3155


def test_bundle_shapes_of_the_real_model():
    """The table of the bundle format, written out."""
    config = ModelConfig.load(CONFIGS / CONFIG_FILES[0])
    shapes = {rule.name: rule.shape for rule in rows(bundle_rules(config, untied_head=True))}
    expected = {
        "vision.patch_embed.weight": (1152, 588),
        "vision.pos_embed": (1024, 1152),
        "vision.blocks.25.qkv.weight": (3456, 1152),
        "vision.blocks.25.fc1.weight": (4304, 1152),
        "vision.blocks.25.fc2.weight": (1152, 4304),
        "vision.blocks.25.fc2.bias": (1152,),
        "vision.norm.bias": (1152,),
        "resampler.query": (64, 2304),
        "resampler.kv_proj.weight": (2304, 1152),
        "resampler.k_proj.weight": (2304, 2304),
        "resampler.key_positions": (1024, 2304),
        "resampler.v_proj.bias": (2304,),
        "resampler.proj.weight": (2304, 2304),
        "llm.embed": (122753, 2304),
        "llm.head": (122753, 2304),
        "llm.layers.39.qkv": (6912, 2304),
        "llm.layers.39.o": (2304, 2304),
        "llm.layers.39.gate_up": (11520, 2304),
        "llm.layers.39.down": (2304, 5760),
        "llm.layers.39.post_norm.weight": (2304,),
        "llm.norm.weight": (2304,),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    assert not any(name.startswith(("vision.blocks.26", "llm.layers.40")) for name in shapes)


def test_small_transforms():
    a, b = torch.arange(6.0).view(2, 3), torch.arange(3.0).view(1, 3)
    assert stack_rows(a, b).tolist() == [[0, 1, 2], [3, 4, 5], [0, 1, 2]]
    assert transpose(a).tolist() == [[0, 3], [1, 4], [2, 5]]
    assert transpose(a).is_contiguous()
    packed = torch.arange(6.0)
    assert [third(packed, index=i).tolist() for i in range(3)] == [[0, 1], [2, 3], [4, 5]]


def test_flattened_patches_are_the_convolution():
    """A patch as (colour, row, column) times the flat weight is the convolution's result."""
    weight, picture = torch.randn(8, 3, 14, 14), torch.randn(1, 3, 28, 28)
    expected = F.conv2d(picture, weight, stride=14).flatten(2)[0].T
    patches = picture[0].unfold(1, 14, 14).unfold(2, 14, 14).permute(1, 2, 0, 3, 4).reshape(4, -1)
    assert torch.allclose(patches @ flatten_patches(weight).T, expected, atol=1e-4)


def bicubic(old, new, *, antialias):
    """Returns the (new, old) matrix of bicubic interpolation, by Keys' kernel.

    a = -0.5 with antialiasing (weights outside are dropped, the rest normalised),
    a = -0.75 without (values outside repeat the border's).
    """
    a, scale = (-0.5, max(old / new, 1.0)) if antialias else (-0.75, 1.0)
    matrix = np.zeros((new, old))
    for i in range(new):
        centre = (i + 0.5) * old / new - 0.5
        reach = int(np.ceil(2 * scale)) + 1
        for j in range(int(np.floor(centre)) - reach, int(np.floor(centre)) + reach + 2):
            x = abs(j - centre) / scale
            near = (a + 2) * x**3 - (a + 3) * x**2 + 1
            far = a * (x**3 - 5 * x**2 + 8 * x - 4)
            weight = near if x <= 1 else far if x < 2 else 0.0
            if not antialias:
                matrix[i, min(max(j, 0), old - 1)] += weight
            elif 0 <= j < old:
                matrix[i, j] += weight
    return matrix / matrix.sum(1, keepdims=True)


def spread(positions, old, new, *, antialias):
    plane = positions.double().numpy().reshape(old, old, -1)
    m = bicubic(old, new, antialias=antialias)
    return np.einsum("yj,xk,jkd->yxd", m, m, plane).reshape(new * new, -1)


@pytest.mark.parametrize(("old", "new"), [(27, 32), (3, 4), (9, 12), (27, 16), (4, 4)])
def test_vision_positions_are_resampled_with_antialiasing(old, new, record_property):
    positions = torch.randn(1, old * old, 16, generator=torch.Generator().manual_seed(0))
    expected = spread(positions[0], old, new, antialias=True)
    resampled = resample_grid(positions, new, new)
    assert resampled.dtype == torch.float32
    # float32 against float64
    assert_close(f"{old} to {new}", resampled[0], expected, 2e-6, record_property)
    assert torch.equal(resample_positions(positions, grid=new), resampled[0])


@pytest.mark.parametrize(("old", "new"), [(8, 32), (3, 4), (8, 12), (4, 4)])
def test_resampler_positions_are_spread_without_antialiasing(old, new, record_property):
    positions = torch.randn(old * old, 16, generator=torch.Generator().manual_seed(0))
    expected = spread(positions, old, new, antialias=False)
    assert_close(
        f"{old} to {new}", interpolate_grid(positions, new, new), expected, 2e-6, record_property
    )


def test_bundle_computes_the_resampler(record_property):
    """Folded queries, keys and positions against `nn.MultiheadAttention` on the checkpoint."""
    raw = tiny_config()
    config, state = ModelConfig.from_json(raw), random_state(raw)
    s = {name.removeprefix("resampler."): t.double() for name, t in state.items()}
    b = {name.removeprefix("resampler."): t.double() for name, t in bundle(state, config).items()}
    features = torch.randn(16, 144, dtype=torch.float64)

    def norm(x, of, name):
        return F.layer_norm(x, x.shape[-1:], of[f"{name}.weight"], of[f"{name}.bias"], 1e-6)

    attention = torch.nn.MultiheadAttention(256, 2, batch_first=True, dtype=torch.float64)
    attention.load_state_dict({n[5:]: t for n, t in s.items() if n.startswith("attn.")})
    kv = norm(features @ s["kv_proj.weight"].T, s, "ln_kv")
    keys = kv + torch.from_numpy(spread(s["pos_embed"], 3, 4, antialias=False))
    query = norm(s["query"], s, "ln_q") + s["pos_embed"]
    with torch.no_grad():
        mixed, _ = attention(query[None], keys[None], kv[None])
    expected = norm(mixed[0], s, "ln_post") @ s["proj"]

    kv = norm(features @ b["kv_proj.weight"].T, b, "ln_kv")
    k = kv @ b["k_proj.weight"].T + b["key_positions"]
    v = F.linear(kv, b["v_proj.weight"], b["v_proj.bias"])
    q, k, v = (t.view(len(t), 2, 128).transpose(0, 1) for t in (b["query"], k, v))
    mixed = ((q @ k.transpose(1, 2)) / 128**0.5).softmax(-1) @ v
    mixed = F.linear(mixed.transpose(0, 1).flatten(1), b["out_proj.weight"], b["out_proj.bias"])
    actual = norm(mixed, b, "ln_post") @ b["proj.weight"].T
    # float32 stands between the two in queries and key positions only
    assert_close("resampler", actual, expected, 1e-6, record_property)


def test_bundle_shapes_of_a_model_with_slices():
    """Positions of each shape are made from the trained ones and two halves of a matrix."""
    square, slices = (
        {rule.name: rule.shape for rule in rows(bundle_rules(config, untied_head=True))}
        for config in (ModelConfig.load(CONFIGS / file) for file in CONFIG_FILES[:2])
    )
    changed = {name: shape for name, shape in slices.items() if square.get(name) != shape}
    assert changed == {
        "vision.pos_embed": (729, 1152),
        "resampler.k_proj.bias": (2304,),
        "resampler.key_column_proj.weight": (2304, 1152),
        "resampler.key_row_proj.weight": (2304, 1152),
    }
    assert square.keys() - slices.keys() == {"resampler.key_positions"}


def test_bundle_computes_the_key_positions_of_a_shape():
    """The halves of the matrix, on the halves of the sine table, against the packed projection."""
    raw = slices_config()
    config, width, columns, lines = ModelConfig.from_json(raw), raw["hidden_size"], 5, 3
    packed, bias = torch.randn(3 * width, width), torch.randn(3 * width)
    stored = {"in_proj_weight": packed, "in_proj_bias": bias}
    b = {
        rule.name.removeprefix("resampler."): rule.make(
            lambda name: stored[name.removeprefix("resampler.attn.")]
        )
        for rule in rows(bundle_rules(config, untied_head=False))
        if rule.name.startswith("resampler.key_") or rule.name == "resampler.k_proj.bias"
    }
    table = sincos_grid(width, lines, columns)
    expected = F.linear(table, packed[width : 2 * width], bias[width : 2 * width])
    of_columns = table[:columns, : width // 2] @ b["key_column_proj.weight"].T
    of_rows = table[::columns, width // 2 :] @ b["key_row_proj.weight"].T
    actual = of_columns[None] + of_rows[:, None] + b["k_proj.bias"]
    torch.testing.assert_close(actual.flatten(0, 1), expected, atol=1e-4, rtol=0)


def test_bundle_keeps_the_trained_positions_for_slices():
    config = ModelConfig.from_json(slices_config())
    positions = torch.randn(1, config.vision.trained_grid**2, config.vision.embed_dim)
    (rule,) = [r for r in rows(bundle_rules(config, False)) if r.name == "vision.pos_embed"]
    assert torch.equal(rule.make({"vpm.pos_embed": positions}.__getitem__), positions[0])


def test_bundle_stacks_in_order():
    raw = tiny_config(num_key_value_heads=2)
    config, state = ModelConfig.from_json(raw), random_state(raw)
    made, at = bundle(state, config), "llm.model.layers.1"
    q, k, v = made["llm.layers.1.qkv"].split([256, 128, 128])
    gate, up = made["llm.layers.1.gate_up"].chunk(2)
    for name, part in (("q", q), ("k", k), ("v", v)):
        assert torch.equal(part, state[f"{at}.self_attn.{name}_proj.weight"])
    assert torch.equal(gate, state[f"{at}.mlp.gate_proj.weight"])
    assert torch.equal(up, state[f"{at}.mlp.up_proj.weight"])
    assert torch.equal(made["llm.embed"], state["llm.model.embed_tokens.weight"])


def test_bundle_is_float32_whatever_is_stored():
    raw = tiny_config()
    state = {name: tensor.bfloat16() for name, tensor in random_state(raw).items()}
    state["llm.model.layers.0.self_attn.k_proj.weight"] = torch.zeros(256, 256, dtype=torch.float16)
    made = bundle(state, ModelConfig.from_json(raw))
    assert {tensor.dtype for tensor in made.values()} == {torch.float32}


def test_untied_head():
    raw = tiny_config()
    state = random_state(raw, head="different")
    config = ModelConfig.from_json(raw)
    assert "llm.head" not in bundle(state, config)
    assert torch.equal(bundle(state, config, untied_head=True)["llm.head"], state[HEAD])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers(value):
    weight = torch.ones(4, 4, dtype=torch.bfloat16)
    weight[2, 1] = value
    rule = Rule("a", ("stored.name",), (4, 4))
    with pytest.raises(CheckpointError, match=r"stored\.name: holds NaN or infinity"):
        rule.make({"stored.name": weight}.__getitem__)


def test_transform_with_another_shape_than_the_table():
    with pytest.raises(ShapeError, match=r"a became \[3, 2\]; expected \[2, 3\]"):
        Rule("a", ("b",), (2, 3), transpose).make({"b": torch.ones(2, 3)}.__getitem__)


@pytest.mark.parametrize(
    ("shape", "fits"),
    [((1, 9, 4), True), ((1, 1, 4), True), ((1, 8, 4), False), ((1, 0, 4), False),
     ((1, 9, 5), False), ((9, 4), False)],
)  # fmt: skip
def test_any_square_grid(shape, fits):
    assert shape_fits(shape, (1, ANY_GRID, 4)) is fits


@pytest.mark.parametrize("head", ["none", "copy", "different"])
@pytest.mark.parametrize("decoder_only", [False, True])
def test_load_reference(tmp_path, head, decoder_only):
    raw = tiny_config(decoder_only=decoder_only)
    prefix = "llm." if decoder_only else ""
    state = {prefix + name: t.bfloat16() for name, t in random_state(raw, head=head).items()}
    folder = write_checkpoint(tmp_path, head=head, decoder_only=decoder_only)
    model = load_reference(Checkpoint.open(folder))
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    embedding, lm_head = model.llm.model.embed_tokens.weight, model.llm.lm_head.weight
    assert (lm_head is embedding) is (head != "different")
    for name, parameter in model.named_parameters():
        stored = state[name].float()
        if name == "vpm.pos_embed":
            stored = resample_grid(stored, 4, 4)
        assert torch.equal(parameter, stored), name
    logits = model.llm.logits(model.llm(model.llm.embed(torch.arange(5)[None])))
    assert logits.isfinite().all()


def test_load_reference_in_float16(tmp_path):
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, dtype=torch.float32))
    model = load_reference(checkpoint, dtype=torch.float16)
    assert {p.dtype for p in model.parameters()} == {torch.float16}
    weight = checkpoint.read("vpm.blocks.1.attn.qkv.weight")
    assert torch.equal(model.get_parameter("vpm.blocks.1.attn.qkv.weight"), weight.half())
