"""The decoder as a bundle stores it, in the reference model.

Only plain rounding follows from the checkpoint alone. Where a method searches scales or calibrates,
the model of the bundle's arithmetic takes the decoder's weights from the bundle; how far they are
from the checkpoint's, `runtime.verify.files.weights` measures.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from convert.bundle.plan import Plan
from convert.support.progress import Progress, silent
from quantize.schemes import Array
from runtime.reference.arithmetic import LOADING, STACKS, linear_of, set_embeddings
from runtime.reference.decoder import DecoderLayer
from runtime.reference.lazy_weights import Weight
from runtime.reference.model import MiniCPMV
from runtime.verify.files.weights import hold_stored


@torch.no_grad()
def load_stored(
    model: MiniCPMV,
    plan: Plan,
    weights: Mapping[str, Array],
    progress: Progress = silent,
) -> MiniCPMV:
    """Replaces the decoder's weights of a reference model in place, and returns it.

    Args:
        model: of the configuration that the plan is for.
        plan: how the weights are stored.
        weights: the stored tensors.
        progress: counts the decoder's layers.
    """
    tensors = {tensor.name: tensor for tensor in plan.tensors}

    def held(name: str) -> Weight:
        return hold_stored(weights, tensors[name], plan.recipe.scheme)

    for i, layer in enumerate(model.llm.model.layers):
        progress(LOADING, i, len(model.llm.model.layers))
        for name, paths in STACKS.items():
            at = f"llm.layers.{i}.{name}"
            whole, first = held(at), 0
            for path in paths:  # the linears whose rows were stacked
                above, _, child = path.rpartition(".")
                last = first + layer.get_submodule(path).get_parameter("weight").shape[0]
                linear = linear_of(whole[first:last], tensors[at].format, plan.recipe.scheme)
                setattr(layer.get_submodule(above), child, linear)
                first = last
        assert isinstance(layer, DecoderLayer)
        for name, norm in (
            ("input_norm", layer.input_layernorm),
            ("post_norm", layer.post_attention_layernorm),
        ):
            norm.weight.copy_(held(f"llm.layers.{i}.{name}.weight").float())
    model.llm.model.norm.weight.copy_(held("llm.norm.weight").float())
    set_embeddings(model, plan, lambda name, _: held(name))
    return model
