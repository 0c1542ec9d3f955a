"""Collects the nodes, constants and weights of an ONNX graph; weights are named, not yet read.

Axes: B batch, P patches, D width, Q queries, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from convert.checkpoint.tensor_tables import Rule
from convert.checkpoint.transforms import same, transpose


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


class OnnxBuilder:
    """Collects nodes; each method returns the name of its output tensor."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.weights: dict[str, OnnxWeight] = {}
        self._rules = {rule.name: rule for rule in rules}

    def check_all_used(self) -> None:
        """Asserts that the graph uses each row of the table."""
        unused = set(self._rules) - set(self.weights)
        assert not unused, f"weights that the graph does not use: {sorted(unused)}"

    def node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Adds an operator with one output."""
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def weight(self, name: str, arrange: Callable[[Tensor], Tensor] = same) -> str:
        """Adds a row's tensor; `arrange` gives it the layout that its operator expects."""
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
        """Normalises the last axis with `NAME.weight` and `NAME.bias`."""
        inputs = [x, self.weight(f"{name}.weight"), self.weight(f"{name}.bias")]
        return self.node(
            "LayerNormalization", inputs, output or f"{name}.out", axis=-1, epsilon=eps
        )

    def split(self, x: str, count: int) -> list[str]:
        """Splits the last axis into equal parts."""
        parts = [f"{x}.{i}" for i in range(count)]
        self.nodes.append(
            helper.make_node("Split", [x], parts, name=f"{x}.split", axis=-1, num_outputs=count)
        )
        return parts

    def reshape(self, x: str, shape: list[int]) -> str:
        """Reshapes; 0 keeps an axis, -1 takes what is left."""
        name = "shape." + ".".join(map(str, shape))
        self.constants[name] = helper.make_tensor(name, TensorProto.INT64, [len(shape)], shape)
        return self.node("Reshape", [x, name], f"{x}.reshaped")

    def constant(self, name: str, value: np.ndarray) -> str:
        """Adds a small tensor; the same name always has the same value."""
        self.constants[name] = numpy_helper.from_array(value, name)
        return name

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
