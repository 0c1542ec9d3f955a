"""What whoever asks a model may want to hear, and say, while it works."""

from __future__ import annotations

from collections.abc import Callable

from runtime.inputs.logprobs import StepLogprobs

OnText = Callable[[str], None]

OnLogprobs = Callable[["StepLogprobs"], None]

Cancelled = Callable[[], bool]
