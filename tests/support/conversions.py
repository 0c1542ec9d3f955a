"""Conversions without a command line."""

from __future__ import annotations

from convert.checkpoint.reader import Checkpoint
from convert.conversion.config import ConvertConfig
from convert.conversion.conversion import Conversion


def conversion_of(checkpoint: Checkpoint, *targets: str) -> Conversion:
    """Returns the conversion of a checkpoint for some compiled targets."""
    config = ConvertConfig(checkpoint=str(checkpoint.path), outputs={}, targets=targets)
    return Conversion(config, checkpoint)
