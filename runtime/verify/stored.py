"""The decoder as a bundle stores it, in the reference model.

Only plain rounding follows from the checkpoint alone. Where a method searches scales or calibrates,
the model of the bundle's arithmetic takes the decoder's weights from the bundle; how far they are
from the checkpoint's, `runtime.verify.weights` measures.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from convert.plan import Plan
from quantize.schemes import Array
from runtime.reference.decoder import DecoderLayer
from runtime.reference.model import MiniCPMV
from runtime.verify.weights import decode_tensor


@torch.no_grad()
def load_stored(model: MiniCPMV, plan: Plan, weights: Mapping[str, Array]) -> MiniCPMV:
    """Replaces the decoder's weights of a reference model in place, and returns it.

    Args:
        model: of the configuration that the plan is for.
        plan: how the weights are stored.
        weights: the stored tensors.
    """
    tensors = {tensor.name: tensor for tensor in plan.tensors}

    def decoded(name: str) -> Tensor:
        return decode_tensor(weights, tensors[name], plan.recipe.scheme)

    stack = model.llm.model
    for i, layer in enumerate(stack.layers):
        assert isinstance(layer, DecoderLayer)
        at, attention, mlp = f"llm.layers.{i}", layer.self_attn, layer.mlp
        _split(decoded(f"{at}.qkv"), attention.q_proj, attention.k_proj, attention.v_proj)
        _split(decoded(f"{at}.o"), attention.o_proj)
        _split(decoded(f"{at}.gate_up"), mlp.gate_proj, mlp.up_proj)
        _split(decoded(f"{at}.down"), mlp.down_proj)
        layer.input_layernorm.weight.copy_(decoded(f"{at}.input_norm.weight"))
        layer.post_attention_layernorm.weight.copy_(decoded(f"{at}.post_norm.weight"))
    stack.norm.weight.copy_(decoded("llm.norm.weight"))
    stack.embed_tokens.weight.copy_(decoded("llm.embed"))  # and with it a tied head
    if "llm.head" in tensors:
        model.llm.lm_head.weight.copy_(decoded("llm.head"))
    return model


def _split(rows: Tensor, *linears: nn.Linear) -> None:
    """Gives stacked rows (N, K) back to the linears that they were stacked from."""
    sizes = [len(linear.weight) for linear in linears]
    for linear, part in zip(linears, torch.split(rows, sizes), strict=True):
        linear.weight.copy_(part)
