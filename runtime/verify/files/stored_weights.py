"""The decoder as an artifact stores it, in the reference model.

Only plain rounding follows from the checkpoint alone. Where a method searches scales or calibrates,
the model of its arithmetic takes the decoder's weights from the artifact; how far they are
from the checkpoint's, `runtime.verify.files.weights` measures.
"""

from __future__ import annotations

import torch

from convert.support.progress import Progress, silent
from runtime.reference.arithmetic import LOADING, STACKS, Inputs, linear_of, set_embeddings
from runtime.reference.decoder import DecoderLayer
from runtime.reference.lazy_weights import Weight
from runtime.reference.model import MiniCPMV
from runtime.verify.files.weights import StoredTensors


@torch.no_grad()
def load_stored(
    model: MiniCPMV,
    stored: StoredTensors,
    progress: Progress = silent,
    *,
    inputs: Inputs = Inputs.INT8,
) -> MiniCPMV:
    """Replaces the decoder's weights of a reference model in place, and returns it.

    Args:
        model: of the configuration that the tensors are for.
        stored: the tensors.
        progress: counts the decoder's layers.
        inputs: how the linears take their inputs.
    """
    plan = stored.plan
    tensors = {tensor.name: tensor for tensor in plan.tensors}

    def held(name: str) -> Weight:
        return stored.hold(tensors[name])

    for i, layer in enumerate(model.llm.model.layers):
        progress(LOADING, i, len(model.llm.model.layers))
        for name, paths in STACKS.items():
            at = f"llm.layers.{i}.{name}"
            whole, first = held(at), 0
            for path in paths:  # the linears whose rows were stacked
                above, _, child = path.rpartition(".")
                last = first + layer.get_submodule(path).get_parameter("weight").shape[0]
                linear = linear_of(
                    whole[first:last], tensors[at].format, plan.recipe.scheme, inputs=inputs
                )
                setattr(layer.get_submodule(above), child, linear)
                first = last
        assert isinstance(layer, DecoderLayer)
        for name, norm in (
            ("input_norm", layer.input_layernorm),
            ("post_norm", layer.post_attention_layernorm),
        ):
            norm.weight.copy_(held(f"llm.layers.{i}.{name}.weight").float())
    model.llm.model.norm.weight.copy_(held("llm.norm.weight").float())
    set_embeddings(model, plan, lambda name, _: held(name), inputs=inputs)
    return model
