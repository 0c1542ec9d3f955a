"""Whether an artifact is of the reference's model at all."""

from __future__ import annotations

from pathlib import Path

from convert.bundle.errors import BundleError
from convert.bundle.plan import Plan
from convert.checkpoint.config import ModelConfig
from convert.checkpoint.reader import Checkpoint
from runtime.verify.files.differences import differences, listed


def require_same_model(
    manifest: Path, config: ModelConfig, plan: Plan, checkpoint: Checkpoint
) -> None:
    """Raises BundleError if an artifact's configuration or LM head is not the checkpoint's.

    Args:
        manifest: of the artifact, for the message.
        config: that it states.
        plan: of its tensors.
        checkpoint: the reference.
    """
    head = any(tensor.name == "llm.head" for tensor in plan.tensors)
    if checkpoint.config == config and checkpoint.untied_head == head:
        return
    wrong = [*differences(config.source, checkpoint.config.source, "model")]
    raise BundleError(
        f"{manifest}: its model configuration is not that of {checkpoint.path}, so nothing can be "
        f"compared: {listed(wrong or ['one has a head of its own'])}; convert again"
    )
