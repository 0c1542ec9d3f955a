"""What tests of refused checkpoints share."""

import pytest

from convert.checkpoint.reader import Checkpoint
from quantize.errors import CheckpointError


def refuse(source, *says):
    """Asserts that opening fails in one line that says these things."""
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(source)
    message = str(caught.value)
    assert "\n" not in message
    for part in says:
        assert part in message, message
