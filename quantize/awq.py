"""AWQ (arXiv 2306.00978): inputs with large activations get finer steps.

An input's weights are multiplied by a factor, and whatever makes the input is divided by it: a
norm's weight, or the rows of the linear before. The model computes what it did; rounding hits the
inputs that matter less. In a group of 32 that shares a scale, a large factor leaves its neighbours
coarser, so how far to go (the exponent) is searched with the rounding itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

EXPONENTS = tuple(i / 10 for i in range(11))
_SAMPLED_ROWS = 1024  # of each linear, evenly spread: enough to tell exponents apart
_LARGEST = 64.0  # of a factor and its inverse: what is divided by it must stay within float16

Quantizer = Callable[[Tensor], Tensor]  # weights (N, K) float32 -> what is left of them


def choose_factors(weights: Sequence[Tensor], inputs: Tensor, quantize: Quantizer) -> Tensor:
    """Returns the factors (K,) of the inputs that some linears share; ones if none help.

    Args:
        weights: the linears, (N, K) float32 each.
        inputs: what they get, (L, K) float32.
        quantize: what a linear's weights become.
    """
    power = inputs.T @ inputs
    best = torch.ones(inputs.shape[1])
    magnitude = inputs.abs().mean(0)
    if not bool(magnitude.any()):
        return best
    magnitude /= magnitude[magnitude > 0].log().mean().exp()
    sampled = [weight[:: -(-len(weight) // _SAMPLED_ROWS)] for weight in weights]
    least = torch.inf
    for exponent in EXPONENTS:
        factors = magnitude.clamp(min=1e-6).pow(exponent).clamp(1 / _LARGEST, _LARGEST)
        loss = 0.0
        for weight in sampled:
            error = quantize(weight * factors) / factors - weight
            loss += float(((error @ power) * error).sum())
        if loss < least:
            least, best = loss, factors
    return best
