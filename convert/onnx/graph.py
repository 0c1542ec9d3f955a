"""The vision encoder and the resampler as an ONNX graph; weights are named, not yet read.

Axes: B batch (dynamic), P patches, D width, Q queries, E the decoder's width, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onnx import TensorProto, helper

from convert.checkpoint.config import ModelConfig, ResamplerConfig, VisionConfig
from convert.checkpoint.tensor_tables import Rule, bundle_rules
from convert.onnx.builder import OnnxBuilder, OnnxWeight
from convert.onnx.positions import patch_counts, resampled, sines
from quantize.errors import ConfigError

# The first opset with Gelu; LayerNormalization is older. Attention came with opset 23, which many
# phones' runtimes lack, so it is composed of simpler operators.
OPSET = 20
INPUT, TOKENS, FEATURES = "pixels", "image_tokens", "features"
BATCH, HEIGHT, WIDTH, PATCHES = "batch", "height", "width", "patches"  # names of dynamic axes
_POSITIONS_APART = ("resampler.key_column_proj.", "resampler.key_row_proj.")


@dataclass(frozen=True)
class OnnxGraph:
    """Nodes in order, with constants, weights, inputs and outputs."""

    nodes: Sequence[Any]
    constants: Sequence[Any]  # small, stored in the graph
    weights: Sequence[OnnxWeight]
    inputs: Sequence[Any]
    outputs: Sequence[Any]


def build_graph(config: ModelConfig) -> OnnxGraph:
    """Builds the graph from normalised pixels (B, 3, height, width) to image tokens (B, Q, E).

    Height and width are fixed for a model whose pictures become one square. Else they are dynamic
    multiples of the patch size, and the graph computes the positions of each shape.

    Raises:
        ConfigError: a model without vision.
    """
    vision, resampler = config.vision, config.resampler
    if vision is None or resampler is None:
        raise ConfigError(
            f"{config.architecture} has no vision encoder, so there is nothing to export as ONNX; "
            "leave out --target onnx"
        )
    builder = OnnxBuilder(_rules(config))
    counts = None if vision.slices is None else patch_counts(builder, INPUT, vision.patch_size)
    features = _vision(builder, vision, counts)
    _resampler(builder, resampler, features, counts)
    builder.check_all_used()
    sides: list[int | str] = [HEIGHT, WIDTH]
    patches: int | str = PATCHES
    if vision.slices is None:
        sides, patches = [vision.image_size] * 2, vision.num_patches
    tokens = [resampler.query_num, resampler.embed_dim]
    return OnnxGraph(
        nodes=builder.nodes,
        constants=tuple(builder.constants.values()),
        weights=tuple(builder.weights.values()),
        inputs=[_tensor(INPUT, [3, *sides], "RGB in [-1, 1]: (value / 255 - 0.5) / 0.5")],
        outputs=[
            _tensor(TOKENS, tokens, "what takes the place of the picture's placeholders"),
            _tensor(
                FEATURES,
                [patches, vision.embed_dim],
                "the vision encoder's output, patches row by row",
            ),
        ],
    )


def _rules(config: ModelConfig) -> list[Rule]:
    """Returns the rows of the table that the graph's weights come from."""
    rules = [r for r in bundle_rules(config, untied_head=False) if isinstance(r, Rule)]
    parts = [r for r in rules if r.name.startswith(("vision.", "resampler."))]
    # A bundle's engine projects positions apart from the keys; here they are added before.
    return [rule for rule in parts if not rule.name.startswith(_POSITIONS_APART)]


def _vision(b: OnnxBuilder, c: VisionConfig, counts: tuple[str, str] | None) -> str:
    """Builds the encoder; `counts`: rows and columns of patches where they vary."""
    kernel = b.weight(
        "vision.patch_embed.weight", lambda w: w.reshape(-1, 3, c.patch_size, c.patch_size)
    )
    bias = b.weight("vision.patch_embed.bias")
    x = b.node("Conv", [INPUT, kernel, bias], "vision.patches", strides=[c.patch_size] * 2)
    x = b.reshape(x, [0, c.embed_dim, c.num_patches if counts is None else -1])
    x = b.node("Transpose", [x], "vision.patches.rows", perm=[0, 2, 1])
    positions = b.weight("vision.pos_embed")
    if counts is not None:
        positions = resampled(b, positions, counts, c.trained_grid, c.embed_dim)
    x = b.node("Add", [x, positions], "vision.embed")
    for i in range(c.depth):
        at = f"vision.blocks.{i}"
        qkv = b.linear(b.layer_norm(x, f"{at}.norm1", c.norm_eps), f"{at}.qkv")
        q, k, v = b.split(qkv, 3)
        mixed = b.attention(b.heads(q, c.num_heads, c.head_dim), k, v, c.num_heads, c.head_dim, at)
        x = b.node("Add", [x, b.linear(mixed, f"{at}.proj")], f"{at}.attended")
        hidden = b.linear(b.layer_norm(x, f"{at}.norm2", c.norm_eps), f"{at}.fc1")
        hidden = b.node("Gelu", [hidden], f"{at}.gelu", approximate="none")
        x = b.node("Add", [x, b.linear(hidden, f"{at}.fc2")], f"{at}.out")
    return b.layer_norm(x, "vision.norm", c.norm_eps, output=FEATURES)


def _resampler(
    b: OnnxBuilder, c: ResamplerConfig, features: str, counts: tuple[str, str] | None
) -> str:
    """Builds the resampler; `counts`: rows and columns of patches where they vary."""
    at = "resampler"
    # (H, Q, d), the same for every picture: broadcasts over the batch.
    queries = b.weight(
        f"{at}.query", lambda w: w.reshape(-1, c.num_heads, c.head_dim).transpose(0, 1)
    )
    kv = b.layer_norm(b.linear(features, f"{at}.kv_proj", bias=""), f"{at}.ln_kv", c.norm_eps)
    if counts is None:
        # The projected positions include the keys' bias.
        k = b.linear(kv, f"{at}.k_proj", bias=f"{at}.key_positions")
    else:
        placed = b.node("Add", [kv, sines(b, counts, c.embed_dim)], f"{at}.keys")
        k = b.linear(placed, f"{at}.k_proj")
    v = b.linear(kv, f"{at}.v_proj")
    mixed = b.attention(queries, k, v, c.num_heads, c.head_dim, at)
    x = b.layer_norm(b.linear(mixed, f"{at}.out_proj"), f"{at}.ln_post", c.norm_eps)
    return b.linear(x, f"{at}.proj", bias="", output=TOKENS)


def _tensor(name: str, shape: Sequence[int | str], doc: str) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [BATCH, *shape], doc_string=doc)
