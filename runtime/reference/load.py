"""The reference model with the weights of a checkpoint."""

from __future__ import annotations

import torch
from torch import nn

from convert.checkpoint.reader import Checkpoint
from convert.checkpoint.tensor_tables import Rule, reference_rules
from runtime.reference.lazy_weights import LazyEmbedding, LazyLinear, make_lazy
from runtime.reference.model import MiniCPMV

VISION = ("vpm.", "resampler.")  # what `load_reference` loads of a model to encode pictures


def load_reference(
    checkpoint: Checkpoint,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    only: tuple[str, ...] = ("",),
    lazy: bool = False,
) -> MiniCPMV:
    """Builds the model for inference, with memory for its parameters and one tensor more.

    Args:
        checkpoint: whose weights to load.
        device: where to put them.
        dtype: what to convert them to; float32 is full precision.
        only: how the names of wanted parameters start; the others stay without storage.
        lazy: leave linears and embeddings in their files, mapped and in their stored dtype, on the
            CPU. They are for reading only: see `runtime.reference.lazy_weights`.

    Raises:
        CheckpointError: the weights hold infinities or NaN, or a file is damaged.
    """
    assert not lazy or torch.device(device).type == "cpu"
    with torch.device("meta"):  # shapes without storage
        model = MiniCPMV(checkpoint.config)
    if lazy:
        make_lazy(model)
    for row in reference_rules(checkpoint.config, checkpoint.untied_head):
        if isinstance(row, Rule) and row.name.startswith(only):
            parameter = row.make_as_stored(checkpoint.read)
            if not _is_lazy(model, row.name):
                # The copy leaves the file's mapping behind, whatever its dtype.
                parameter = torch.empty(row.shape, dtype=dtype, device=device).copy_(parameter)
            _assign(model, row.name, parameter)
    if not checkpoint.untied_head:
        model.llm.lm_head.weight = model.llm.model.embed_tokens.weight
    parameters = [pair for pair in model.named_parameters() if pair[0].startswith(only)]
    left = [name for name, parameter in parameters if parameter.is_meta]
    assert not left, f"no rule makes {left}"
    return model.eval()


def _is_lazy(model: MiniCPMV, name: str) -> bool:
    module, _, leaf = name.rpartition(".")
    return leaf == "weight" and isinstance(model.get_submodule(module), LazyLinear | LazyEmbedding)


def _assign(model: MiniCPMV, name: str, value: torch.Tensor) -> None:
    """Puts a parameter in its place; its shape is the module's own."""
    module, _, leaf = name.rpartition(".")
    owner = model.get_submodule(module)
    assert getattr(owner, leaf).shape == value.shape, f"{name}: {tuple(value.shape)}"
    setattr(owner, leaf, nn.Parameter(value, requires_grad=False))
