"""The vision encoder and the resampler as an ONNX graph; weights are named, not yet read.

Axes: B batch (dynamic), P patches, D width, Q queries, E the decoder's width, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from onnx import TensorProto, helper
from torch import Tensor

from convert.checkpoint.config import ModelConfig, ResamplerConfig, VisionConfig
from convert.checkpoint.tensor_tables import Rule, bundle_rules, same, transpose
from quantize.errors import ConfigError

# The first opset with Gelu; LayerNormalization is older. Attention came with opset 23, which many
# phones' runtimes lack, so it is composed of simpler operators.
OPSET = 20
INPUT, TOKENS, FEATURES = "pixels", "image_tokens", "features"
_BATCH = "batch"


@dataclass(frozen=True)
class OnnxWeight:
    """A weight of the graph: its table row, and the layout that the graph's operator expects."""

    rule: Rule
    arrange: Callable[[Tensor], Tensor]

    @property
    def name(self) -> str:
        """The initializer's name, which is that of the bundle's tensor."""
        return self.rule.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The initializer's shape."""
        return tuple(self.arrange(torch.empty(self.rule.shape, device="meta")).shape)

    @property
    def nbytes(self) -> int:
        """Size as float32."""
        return 4 * torch.Size(self.shape).numel()

    def make(self, read: Callable[[str], Tensor]) -> Tensor:
        """Reads the checkpoint's tensors and returns this weight, contiguous float32."""
        return self.arrange(self.rule.make(read)).contiguous()


@dataclass(frozen=True)
class OnnxGraph:
    """Nodes in order, with constants, weights, inputs and outputs."""

    nodes: Sequence[Any]
    constants: Sequence[Any]  # small, stored in the graph
    weights: Sequence[OnnxWeight]
    inputs: Sequence[Any]
    outputs: Sequence[Any]


def build_graph(config: ModelConfig) -> OnnxGraph:
    """Builds the graph from normalised pixels (B, 3, S, S) to image tokens (B, Q, E).

    Raises:
        ConfigError: a model without vision.
    """
    vision, resampler = config.vision, config.resampler
    if vision is None or resampler is None:
        raise ConfigError(
            f"{config.architecture} has no vision encoder, so there is nothing to export as ONNX; "
            "leave out --target onnx"
        )
    rules = [r for r in bundle_rules(config, untied_head=False) if isinstance(r, Rule)]
    builder = _Builder(r for r in rules if r.name.startswith(("vision.", "resampler.")))
    features = _vision(builder, vision)
    _resampler(builder, resampler, features)
    builder.check_all_used()
    sides = [vision.image_size] * 2
    patches = [vision.num_patches, vision.embed_dim]
    tokens = [resampler.query_num, resampler.embed_dim]
    return OnnxGraph(
        nodes=builder.nodes,
        constants=tuple(builder.constants.values()),
        weights=tuple(builder.weights.values()),
        inputs=[_tensor(INPUT, [3, *sides], "RGB in [-1, 1]: (value / 255 - 0.5) / 0.5")],
        outputs=[
            _tensor(TOKENS, tokens, "what takes the place of the picture's placeholders"),
            _tensor(FEATURES, patches, "the vision encoder's output, patches row by row"),
        ],
    )


def _vision(b: _Builder, c: VisionConfig) -> str:
    kernel = b.weight(
        "vision.patch_embed.weight", lambda w: w.reshape(-1, 3, c.patch_size, c.patch_size)
    )
    bias = b.weight("vision.patch_embed.bias")
    x = b.node("Conv", [INPUT, kernel, bias], "vision.patches", strides=[c.patch_size] * 2)
    x = b.reshape(x, [0, c.embed_dim, c.num_patches])
    x = b.node("Transpose", [x], "vision.patches.rows", perm=[0, 2, 1])
    x = b.node("Add", [x, b.weight("vision.pos_embed")], "vision.embed")
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


def _resampler(b: _Builder, c: ResamplerConfig, features: str) -> str:
    at = "resampler"
    # (H, Q, d), the same for every picture: broadcasts over the batch.
    queries = b.weight(
        f"{at}.query", lambda w: w.reshape(-1, c.num_heads, c.head_dim).transpose(0, 1)
    )
    kv = b.layer_norm(b.linear(features, f"{at}.kv_proj", bias=""), f"{at}.ln_kv", c.norm_eps)
    # The projected positions include the keys' bias.
    k = b.linear(kv, f"{at}.k_proj", bias=f"{at}.key_positions")
    v = b.linear(kv, f"{at}.v_proj")
    mixed = b.attention(queries, k, v, c.num_heads, c.head_dim, at)
    x = b.layer_norm(b.linear(mixed, f"{at}.out_proj"), f"{at}.ln_post", c.norm_eps)
    return b.linear(x, f"{at}.proj", bias="", output=TOKENS)


class _Builder:
    """Collects nodes; each method returns the name of its output tensor."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.weights: dict[str, OnnxWeight] = {}
        self._rules = {rule.name: rule for rule in rules}

    def check_all_used(self) -> None:
        unused = set(self._rules) - set(self.weights)
        assert not unused, f"weights that the graph does not use: {sorted(unused)}"

    def node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def weight(self, name: str, arrange: Callable[[Tensor], Tensor] = same) -> str:
        assert name not in self.weights, f"{name} is used twice"
        self.weights[name] = OnnxWeight(self._rules[name], arrange)
        return name

    def linear(self, x: str, name: str, *, bias: str | None = None, output: str = "") -> str:
        """Multiplies by `NAME.weight`, adds `NAME.bias` (or another, or none if empty)."""
        # MatMul takes (K, N); the table has (N, K).
        weight = self.weight(f"{name}.weight", transpose)
        bias = f"{name}.bias" if bias is None else bias
        product = output if output and not bias else f"{name}.product"
        product = self.node("MatMul", [x, weight], product)
        if not bias:
            return product
        return self.node("Add", [product, self.weight(bias)], output or f"{name}.out")

    def layer_norm(self, x: str, name: str, eps: float, *, output: str = "") -> str:
        inputs = [x, self.weight(f"{name}.weight"), self.weight(f"{name}.bias")]
        return self.node(
            "LayerNormalization", inputs, output or f"{name}.out", axis=-1, epsilon=eps
        )

    def split(self, x: str, count: int) -> list[str]:
        parts = [f"{x}.{i}" for i in range(count)]
        self.nodes.append(
            helper.make_node("Split", [x], parts, name=f"{x}.split", axis=-1, num_outputs=count)
        )
        return parts

    def reshape(self, x: str, shape: list[int]) -> str:
        """Reshapes; 0 keeps an axis."""
        name = "shape." + ".".join(map(str, shape))
        self.constants[name] = helper.make_tensor(name, TensorProto.INT64, [len(shape)], shape)
        return self.node("Reshape", [x, name], f"{x}.reshaped")

    def heads(self, x: str, heads: int, head_dim: int, *, keys: bool = False) -> str:
        """Splits (B, L, D) into (B, H, L, d), keys into (B, H, d, L)."""
        x = self.reshape(x, [0, 0, heads, head_dim])
        perm = [0, 2, 3, 1] if keys else [0, 2, 1, 3]
        return self.node("Transpose", [x], f"{x}.heads", perm=perm)

    def attention(self, q: str, k: str, v: str, heads: int, head_dim: int, at: str) -> str:
        """Attends from q (..., H, Q, d) to k and v (B, P, D); gives (B, Q, D)."""
        scale = f"scale.{head_dim}"
        self.constants[scale] = helper.make_tensor(scale, TensorProto.FLOAT, [], [head_dim**-0.5])
        q = self.node("Mul", [q, scale], f"{at}.q_scaled")
        k = self.heads(k, heads, head_dim, keys=True)
        scores = self.node("MatMul", [q, k], f"{at}.scores")
        weights = self.node("Softmax", [scores], f"{at}.weights", axis=-1)
        mixed = self.node("MatMul", [weights, self.heads(v, heads, head_dim)], f"{at}.mixed")
        mixed = self.node("Transpose", [mixed], f"{at}.mixed.rows", perm=[0, 2, 1, 3])
        return self.reshape(mixed, [0, 0, heads * head_dim])


def _tensor(name: str, shape: list[int], doc: str) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [_BATCH, *shape], doc_string=doc)
