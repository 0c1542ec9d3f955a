"""Time per kernel for a picture, a prompt and a token."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from runtime.bench.inputs import FIRST_QUESTION, LONG_ANSWER, ask, random_picture, text_of_length
from runtime.engine_client.client import EngineClient
from runtime.engine_client.process import Line
from runtime.engine_client.protocol import Field
from runtime.inputs.prompt import Tokenizer
from runtime.inputs.slices import Size

PROMPT_TOKENS = 256
DECODE_STEPS = 32
# Unused so far: an engine caches the pictures of earlier rounds and would not encode them again.
_PICTURES = (1_000_000, 1_000_001)  # seeds
BETWEEN = "between kernels"  # the virtual machine, and our own code
_MACHINE = "vm."
_LINEAR = re.compile(r"linear_(q4|q8|f16)_(\d+)x(\d+)")
_BITS = {"q4": 4.5, "q8": 8.125, "f16": 16}  # of a weight, with its share of a scale


@dataclass(frozen=True, kw_only=True)
class KernelShare:
    """One kernel of a phase."""

    name: str
    calls: float  # per unit of the phase
    ms: float  # likewise
    share: float  # of the phase's time
    multiply_adds_s: float | None  # of a product of matrices
    weight_bytes_s: float | None  # likewise; a call reads them once at least


@dataclass(frozen=True, kw_only=True)
class ProfiledPhase:
    """The time for one picture, one prompt or one token."""

    name: str
    ms: float
    kernels: tuple[KernelShare, ...]  # the longest first


def profile(
    client: EngineClient, tokenizer: Tokenizer | None, size: Size | None
) -> tuple[ProfiledPhase, ...]:
    """Measures a loaded bundle, each phase once after a first run that warms up.

    Args:
        client: an engine with a bundle.
        tokenizer: the bundle's; without one, only pictures are profiled.
        size: of a picture that becomes one image; None: the bundle takes no pictures.
    """
    phases = []
    client.profile()
    if size is not None:
        client.image(random_picture(_PICTURES[0], size))
        client.profile()
        encoded = client.image(random_picture(_PICTURES[1], size))
        phases.append(_phase("picture", encoded[Field.ENCODE_MS], 1, client.profile()))
    if tokenizer is None:
        return tuple(phases)
    text = text_of_length(tokenizer, PROMPT_TOKENS)
    client.chat(ask(FIRST_QUESTION), max_new_tokens=2)
    client.reset()
    client.profile()
    read = client.chat(ask(text), max_new_tokens=1).statistics
    tokens = read[Field.PROMPT_TOKENS]
    prefill = client.profile()
    phases.append(_phase(f"prompt of {tokens} tokens", read[Field.PREFILL_MS], 1, prefill))
    client.chat(ask(LONG_ANSWER), max_new_tokens=1)
    client.profile()
    # All of the prompt but its last token is in the cache, so only one step is prefill.
    written = client.chat(
        ask(LONG_ANSWER), max_new_tokens=DECODE_STEPS + 1, options={Field.LOOKUP: False}
    ).statistics
    steps = written[Field.DECODE_STEPS] + 1
    ms = written[Field.PREFILL_MS] + written[Field.DECODE_MS]
    phases.append(_phase("token", ms, steps, client.profile()))
    return tuple(phases)


def _phase(name: str, ms: float, units: int, kernels: Iterable[Line]) -> ProfiledPhase:
    """Divides what was measured by the phase's units."""
    shares = []
    for kernel in kernels:
        if kernel[Field.NAME].startswith(_MACHINE):
            continue
        done = read = None
        if (shape := _LINEAR.search(kernel[Field.NAME])) is not None:
            weights = int(shape[2]) * int(shape[3])
            done = kernel[Field.ROWS] * weights / kernel[Field.MS] * 1000
            read = kernel[Field.CALLS] * weights * _BITS[shape[1]] / 8 / kernel[Field.MS] * 1000
        shares.append(
            KernelShare(
                name=kernel[Field.NAME],
                calls=kernel[Field.CALLS] / units,
                ms=kernel[Field.MS] / units,
                share=kernel[Field.MS] / ms,
                multiply_adds_s=done,
                weight_bytes_s=read,
            )
        )
    shares.sort(key=lambda kernel: -kernel.ms)
    rest = ms / units - sum(kernel.ms for kernel in shares)
    between = KernelShare(
        name=BETWEEN,
        calls=0,
        ms=rest,
        share=rest * units / ms,
        multiply_adds_s=None,
        weight_bytes_s=None,
    )
    return ProfiledPhase(name=name, ms=ms / units, kernels=(*shares, between))
