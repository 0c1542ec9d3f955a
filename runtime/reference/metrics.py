"""How far two results are apart."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

_RUN_VALUES = 1 << 17  # a run's temporaries fit the second-level cache


def sqnr_db(reference: Tensor, value: Tensor) -> float:
    """Returns the signal-to-quantization-noise ratio in dB; infinite where both are equal.

    Values that are not finite give minus infinity: there is no signal left.
    """
    power = error = 0.0
    for signal, output in _runs(reference, value):
        power += float(signal.double().square_().sum())
        error += float((output - signal).double().square_().sum())
    if not math.isfinite(error):
        return -math.inf
    if error == 0:
        return math.inf
    return 10 * math.log10(power / error) if power else -math.inf


def cosine(reference: Tensor, value: Tensor) -> float:
    """Returns the cosine of the angle between two tensors, each taken as one vector."""
    dot = first = second = 0.0
    for one, other in _runs(reference, value):
        a, b = one.double(), other.double()
        dot, first, second = dot + float(a @ b), first + float(a @ a), second + float(b @ b)
    size = math.sqrt(first) * math.sqrt(second)
    return dot / size if size else 0.0


def kl_divergence(reference: Tensor, value: Tensor) -> Tensor:
    """Returns KL(reference || value) in nats of each row of logits (L, V): (L,)."""
    expected = F.log_softmax(reference.float(), dim=-1)
    return F.kl_div(
        F.log_softmax(value.float(), dim=-1), expected, reduction="none", log_target=True
    ).sum(-1)


def same_top1(reference: Tensor, value: Tensor) -> Tensor:
    """Returns for each row of logits (L, V) whether the likeliest token is the same: (L,)."""
    return reference.argmax(-1) == value.argmax(-1)


def mean(values: Tensor) -> float:
    """Returns the mean of a tensor; NaN of an empty one."""
    return float(values.float().mean()) if values.numel() else math.nan


def negative_log_likelihood(logits: Tensor, tokens: Tensor) -> float:
    """Returns -log p in nats, summed over rows of logits (L, V) and a token (L,) of each."""
    return float(F.cross_entropy(logits.float(), tokens, reduction="none").double().sum())


def max_difference(reference: Tensor, value: Tensor) -> float:
    """Returns the largest absolute difference."""
    return float((reference - value).abs().max())


def _runs(reference: Tensor, value: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Cuts both into runs: float64 copies of a whole token embedding would take gigabytes."""
    runs = (torch.split(t.flatten(), _RUN_VALUES) for t in (reference, value))
    yield from zip(*runs, strict=True)
