"""Kernels that tests compile alone, and what attention is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tvm

from convert.blocks.lowering import KERNELS
from convert.bundle.targets import HOST
from convert.engine.compile import Target, Variant

PLAIN = Target.load(HOST).variants[-1]  # what every host can run
Array = np.ndarray
Run = Callable[[list[Array], list[Array]], None]


def compiled(function: Any, variant: Variant = PLAIN) -> Run:
    """Compiles a kernel; returns what calls it with inputs and fills outputs."""
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    target = tvm.target.Target(variant.tvm)
    made = tvm.compile(module, target=target, tir_pipeline=KERNELS)["main"]

    def run(inputs: list[Array], outputs: list[Array]) -> None:
        tensors = [tvm.runtime.tensor(x) for x in (*inputs, *outputs)]
        made(*tensors)
        for array, tensor in zip(outputs, tensors[len(inputs) :], strict=True):
            array[...] = tensor.numpy()

    return run


def normal(*shape: int) -> Array:
    """Returns normally distributed float32, the same for each shape."""
    rng = np.random.default_rng(sum(shape))
    return rng.standard_normal(shape).astype(np.float32)


def attended(q: Array, packed: Array, heads: int) -> Array:
    """Returns what attention is in float64; `packed` has a column, keys and values."""
    width = q.shape[1]
    split = [
        torch.from_numpy(t).double().view(len(t), heads, -1).transpose(0, 1)
        for t in (q, packed[:, 1 : width + 1].copy(), packed[:, width + 1 :].copy())
    ]
    mixed = F.scaled_dot_product_attention(*split)
    return mixed.transpose(0, 1).reshape(q.shape).numpy()
