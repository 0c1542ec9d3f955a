"""Callbacks of a caller: text, progress and cancelling while a model works."""

from __future__ import annotations

from collections.abc import Callable

from runtime.inputs.logprobs import StepLogprobs

OnText = Callable[[str], None]

OnLogprobs = Callable[["StepLogprobs"], None]

Cancelled = Callable[[], bool]
