"""How long a calibration takes here: its operations, at the rate of this machine's products."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

import torch

from convert.bundle.plan import Plan, PlannedTensor
from convert.calibrate.calibration import HEAD_SAMPLES, HELD_OUT
from convert.calibrate.layer import STAGES
from convert.calibrate.samples import TokenizedSample
from convert.checkpoint.config import ModelConfig
from quantize.gptq import DAMPINGS, SAMPLED_ROWS, can_choose_damping
from quantize.methods import find_method

# Of a weight that gets a code, in the time of a product's operations: the search for its group's
# scale and its column's share of the rounding, except for products.
_ROUNDING = 1_500
_SUMS = 3.1  # operations per token and pair of inputs: half of the power, all of the drift
_POWER = (
    1.1  # of them, the power's; a target takes the place of the drift where the output is added
)
_ADDING = {stage.name for stage in STAGES if stage.adds}
# Two Cholesky factors and the inverse of one, in operations per K^3, slower ones than products; and
# those with which a damping is chosen.
_FACTORS, _CHOICE = 1.7, 2.8
_SOLVING = 3.3  # operations per weight and input, to correct weights with a factor


def estimate_seconds(config: ModelConfig, plan: Plan, samples: Sequence[TokenizedSample]) -> float:
    """Estimates how long `calibrate` takes on this machine, with the load that it has now.

    Args:
        config: of the model.
        plan: with a method that calibrates.
        samples: those of the calibration.
    """
    return count_operations(config, plan, samples) / _operations_per_second()


def count_operations(config: ModelConfig, plan: Plan, samples: Sequence[TokenizedSample]) -> float:
    """Counts the float32 operations of a calibration, or what takes as long.

    Args:
        config: of the model.
        plan: with a method that calibrates.
        samples: those of the calibration.
    """
    method = find_method(plan.recipe.method)
    tokens = sum(len(sample.ids) for sample in samples)
    total = _of_pictures(config, plan, samples)
    layers = [t for t in plan.tensors if t.name.startswith("llm.layers.") and len(t.rule.shape) > 1]
    ends = [t for t in plan.tensors if t.name in ("llm.embed", "llm.head") and t.format == "q4"]
    forward = sum(2.0 * tensor.parameters * tokens for tensor in layers)
    total += forward * (2 if method.compensate else 1)
    if not method.compensate:
        return total + sum(_ROUNDING * t.parameters for t in layers if t.format == "q4")
    total += sum(_of_compensation(t, tokens) for t in layers if t.format == "q4")
    tied = all(tensor.name != "llm.head" for tensor in plan.tensors)
    if tied and ends:
        total += forward / HEAD_SAMPLES  # for the head's inputs
    if tied or len(ends) > 1:
        some = tokens / HEAD_SAMPLES if tied else tokens
        total += sum(_of_compensation(t, some) for t in ends[-1:])
    return total


def _of_compensation(tensor: PlannedTensor, tokens: float) -> float:
    """Counts what GPTQ does for a linear (N, K)."""
    n, k = tensor.rule.shape
    adds = tensor.name.rpartition(".")[2] in _ADDING  # so that what its output lacks is summed up
    total = (_POWER * k**2 + 2.0 * n * k if adds else _SUMS * k**2) * tokens
    total += _FACTORS * k**3
    tried = []
    if can_choose_damping(tokens - tokens / HELD_OUT, k):
        tried = [min(n, SAMPLED_ROWS) for _ in DAMPINGS]
        total += _CHOICE * k**3
    for rows in (n, *tried):
        correction = _SOLVING * (rows if adds else min(rows, k)) * k**2 + 2.0 * rows * k**2
        total += correction + rows * k * (k + _ROUNDING)
    return total


def _of_pictures(config: ModelConfig, plan: Plan, samples: Sequence[TokenizedSample]) -> float:
    vision = config.vision
    if vision is None:
        return 0.0
    pictures = {sample.picture_digest: sample.patches for sample in samples}
    weights = sum(t.parameters for t in plan.tensors if t.name.startswith(("vision.", "resampler")))
    attention = 4.0 * vision.depth * vision.embed_dim
    images = itertools.chain.from_iterable(pictures.values())
    return sum(2.0 * weights * patches + attention * patches**2 for patches in images)


def _operations_per_second() -> float:
    """Measures products of matrices as large as a run of tokens and a linear."""
    tokens, weight = torch.ones(1024, 2048), torch.ones(2048, 2048)
    seconds = []
    for _ in range(4):  # the first one warms up
        start = time.perf_counter()
        torch.mm(tokens, weight)
        seconds.append(time.perf_counter() - start)
    return 2.0 * len(tokens) * weight.numel() / sorted(seconds[1:])[1]
