"""GPTQ (arXiv 2210.17323): rounds input by input; later inputs compensate for its error.

The layout wants 32 neighbouring inputs in a group, so inputs are ordered group by group: groups
by the power of their inputs, inputs within a group likewise. A group's scales are searched when
its turn comes, in the weights that the groups before have changed.

Inputs are measured as the kernels see them: after the layers that are already quantized, and
rounded to int8. `Compensation.correct` first moves the weights to where these inputs give what
the full-precision inputs gave, as far as a linear can (GPTAQ, arXiv 2504.02692, solves the same
problem column by column). A linear whose output is added to the hidden states also makes good
what these have lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from quantize.errors import CheckpointError
from quantize.fast import nearest_codes, search_scales
from quantize.schemes import GroupScheme, dequantize_groups

SAMPLED_ROWS = 128  # of a linear, evenly spread: enough to tell dampings apart
_CHUNK_ROWS = 1024  # rounded together, so that a block of inputs stays in the second-level cache
_BLOCK = 128  # inputs whose errors reach the inputs after them in one product
_SQUARE = 512  # inputs whose products with those after them are summed up at once


@dataclass(frozen=True)
class Damping:
    """What holds a linear's weights back, as shares of its inputs' mean power."""

    correction: float  # of the drift from full precision
    rounding: float  # of the errors of the inputs before


# `choose_damping` picks one. The first is the safest: with little damping a correction fits the
# words of the samples, which other texts do not share.
DAMPINGS = (Damping(0.3, 0.1), Damping(0.1, 0.01), Damping(0.01, 0.01))
# By which another one must be better on samples held out, as a share of what rounding loses there.
# These are of the same kinds as the others, so what is as good on them is not as good elsewhere.
MARGIN = 0.1


@dataclass(frozen=True)
class Tokens:
    """What a linear has of some tokens in the two models."""

    seen: Tensor  # (L, K) float32: inputs of the quantized model
    wanted: Tensor  # (L, K) float32: inputs of the full-precision model
    # (L, N) float32: what the hidden states that the output is added to lack, in its unit
    behind: Tensor | None = None


@dataclass(frozen=True)
class Inputs:
    """What calibration saw of a linear's K inputs, as sums over tokens."""

    power: Tensor  # (K, K) float64: of x xT, x as the quantized model has it
    drift: Tensor  # (K, K) float32: of (f - x) xT, f as the full-precision model has it
    behind: Tensor | None = None  # (N, K) float32: of b xT, b as `Tokens.behind`

    @staticmethod
    def of(runs: Iterable[Tokens], width: int) -> Inputs:
        """Sums up tokens with inputs of a width."""
        power, drift = torch.zeros(width, width), torch.zeros(width, width)
        behind: Tensor | None = None
        for run in runs:
            seen = run.seen
            for start in range(0, width, _SQUARE):  # the upper half: the lower one mirrors it
                rows = slice(start, start + _SQUARE)
                power[rows, start:].addmm_(seen[:, rows].T, seen[:, start:])
            drift.addmm_((run.wanted - seen).T, seen)
            if run.behind is not None:
                product = run.behind.T @ seen
                behind = product if behind is None else behind.add_(product)
        return Inputs((power.triu() + power.triu(1).T).double(), drift, behind)

    def __add__(self, other: Inputs) -> Inputs:
        behind = self.behind
        if other.behind is not None:
            behind = other.behind if behind is None else behind + other.behind
        return Inputs(self.power + other.power, self.drift + other.drift, behind)

    def every(self, step: int) -> Inputs:
        """Returns the same for every `step`-th row of the linear."""
        behind = None if self.behind is None else self.behind[::step]
        return Inputs(self.power, self.drift, behind)

    def missing(self, weight: Tensor) -> Tensor:
        """Returns the sum of m xT, m what the output lacks with the weights W: (N, K) float32."""
        missing = weight @ self.drift
        return missing if self.behind is None else missing.add_(self.behind)

    def loss(self, weight: Tensor, stored: Tensor) -> float:
        """Returns |W f + b - W' x|^2 over the tokens, less what no W' changes: its value at W.

        Args:
            weight: W, (N, K) float32.
            stored: W', (N, K) float32.
        """
        error = weight - stored
        cost = error @ self.power.float() + 2 * self.missing(weight)
        return float((cost * error).sum(dtype=torch.float64))

    def error(self, weight: Tensor, stored: Tensor) -> float:
        """Returns |W x - W' x|^2 over the tokens."""
        error = weight - stored
        return float((error @ self.power.float() * error).sum(dtype=torch.float64))

    def damped(self, damping: float) -> Tensor:
        """Returns the power, its diagonal raised by `damping` of its mean: (K, K), definite."""
        power = self.power.clone()
        mean = float(power.diagonal().mean())
        power.diagonal().add_(damping * mean if mean > 0 else 1.0)
        return power


class Compensation:
    """Quantizes linears that share their inputs, with error compensation."""

    def __init__(self, power: Tensor, scheme: GroupScheme) -> None:
        """Prepares for inputs.

        Args:
            power: (K, K) float64, positive definite: what an error costs; see `Inputs.damped`.
            scheme: the number format.
        """
        self._scheme = scheme
        self._order = _order(power.diagonal(), scheme.group_size)
        # The factor is the upper U with power^-1 = UT U: the inverse of the upper R with
        # power = R RT, which is the ordinary Cholesky factor with both axes reversed.
        turned = self._order.flip(0)
        root = torch.linalg.cholesky(power[turned][:, turned]).flip(0, 1)
        self._factor = _invert_upper(root).float()

    def correct(self, weight: Tensor, inputs: Inputs) -> Tensor:
        """Returns the weights (N, K) float32 that make best use of the inputs as they are.

        They minimise |W f + b - W' x|^2 over the tokens, plus the damping times |W - W'|^2.

        Args:
            weight: W, (N, K) float32.
            inputs: of the linear.
        """
        # In a wide linear a matrix of K rows is the smaller one to solve for.
        wide = len(weight) > weight.shape[1] and inputs.behind is None
        step = (inputs.drift if wide else inputs.missing(weight))[:, self._order]
        solved = torch.empty_like(step)
        solved[:, self._order] = step @ self._factor.T @ self._factor
        return weight + (weight @ solved if wide else solved)

    def round(self, weight: Tensor, *, name: str) -> tuple[Tensor, Tensor]:
        """Quantizes weights (N, K) of any float dtype.

        Returns:
            q (N, K) uint8 codes; scale (N, K/G) float16.

        Raises:
            CheckpointError: a value of the tensor `name` is not finite.
        """
        rows, columns = weight.shape
        size = self._scheme.group_size
        q = torch.empty(columns, rows, dtype=torch.uint8)
        scale = torch.empty(columns // size, rows, dtype=torch.float16)
        for start in range(0, rows, _CHUNK_ROWS):
            chunk = slice(start, min(start + _CHUNK_ROWS, rows))
            wide = weight[chunk].float()
            if not bool(wide.isfinite().all()):
                raise CheckpointError(f"{name}: holds NaN or infinity; is the checkpoint damaged?")
            ordered = wide.T.contiguous()[self._order]
            codes, scales = _round(ordered, self._factor, self._scheme)
            q[self._order, chunk] = codes
            scale[self._order[::size] // size, chunk] = scales
        return q.T.contiguous(), scale.T.contiguous()


def compensate(
    weight: Tensor, inputs: Inputs, damping: Damping, scheme: GroupScheme, *, name: str
) -> tuple[Tensor, Tensor]:
    """Corrects and rounds weights (N, K) float32.

    Returns:
        q (N, K) uint8 codes; scale (N, K/G) float16.

    Raises:
        CheckpointError: a value of the tensor `name` is not finite.
    """
    return _compensate(weight, inputs, damping, _damped(inputs, scheme), name)


def choose_damping(
    weight: Tensor, seen: Inputs, held_out: Inputs, scheme: GroupScheme, *, name: str
) -> Damping:
    """Returns the damping with which weights serve tokens best that rounding has not seen.

    What is right depends on the model: the demo, whose questions are all alike, needs hardly any;
    on real text little damping fits the weights to the samples. So the first one counts unless
    another is better by `MARGIN`.

    Args:
        weight: (N, K) float32.
        seen: the inputs to round with.
        held_out: the inputs to judge by.
        scheme: the number format.
        name: the tensor, for messages.

    Raises:
        CheckpointError: a value of the tensor is not finite.
    """
    step = -(-len(weight) // SAMPLED_ROWS)
    weight, seen, held_out = weight[::step], seen.every(step), held_out.every(step)

    prepared = _damped(seen, scheme)

    def stored(damping: Damping) -> Tensor:
        q, scale = _compensate(weight, seen, damping, prepared, name)
        return torch.from_numpy(dequantize_groups(q.numpy(), scale.numpy(), scheme))

    best, *others = DAMPINGS
    safe = stored(best)
    least = held_out.loss(weight, safe) - MARGIN * held_out.error(weight, safe)
    for damping in others:
        loss = held_out.loss(weight, stored(damping))
        if loss < least:
            least, best = loss, damping
    return best


def _damped(inputs: Inputs, scheme: GroupScheme) -> Callable[[float], Compensation]:
    """Prepares compensation with any share of damping, once for each."""
    return cache(lambda share: Compensation(inputs.damped(share), scheme))


def _compensate(
    weight: Tensor,
    inputs: Inputs,
    damping: Damping,
    damped: Callable[[float], Compensation],
    name: str,
) -> tuple[Tensor, Tensor]:
    moved = damped(damping.correction).correct(weight, inputs)
    return damped(damping.rounding).round(moved, name=name)


def _order(power: Tensor, size: int) -> Tensor:
    """Returns inputs (K,) with whole groups together, the most powerful first."""
    groups = power.view(-1, size)
    first = torch.argsort(groups.sum(-1), descending=True, stable=True)
    inside = torch.argsort(groups[first], dim=-1, descending=True, stable=True)
    return (first.unsqueeze(-1) * size + inside).flatten()


def _invert_upper(root: Tensor) -> Tensor:
    """Inverts an upper triangular matrix (K, K), half by half: most of the work is products."""
    half = len(root) // 2
    if half < _BLOCK:
        one = torch.eye(len(root), dtype=root.dtype)
        small: Tensor = torch.linalg.solve_triangular(root, one, upper=True)
        return small
    inverse = torch.zeros_like(root)
    first, last = _invert_upper(root[:half, :half]), _invert_upper(root[half:, half:])
    inverse[:half, :half], inverse[half:, half:] = first, last
    inverse[:half, half:] = (first @ root[:half, half:] @ last).neg_()
    return inverse


def _round(weight: Tensor, factor: Tensor, scheme: GroupScheme) -> tuple[Tensor, Tensor]:
    """Rounds ordered weights, which it changes; a weight row is a column here.

    Args:
        weight: (K, N) float32.
        factor: (K, K) float32, upper, of the inverse power.
        scheme: the number format.

    Returns:
        codes (K, N) uint8; scale (K/G, N) float16.
    """
    columns, rows = weight.shape
    size = scheme.group_size
    q = torch.empty(columns, rows, dtype=torch.uint8)
    scale = torch.empty(columns // size, rows, dtype=torch.float16)
    diagonal = factor.diagonal()
    importance, divisors = diagonal**-2, diagonal.tolist()
    for first in range(0, columns, _BLOCK):
        last = min(first + _BLOCK, columns)
        losses = torch.empty(last - first, rows)
        for start in range(first, last, size):
            end = start + size
            steps = search_scales(weight[start:end].T, scheme, importance[start:end])[:, 0]
            for at in range(start, end):
                codes = nearest_codes(weight[at], steps, scheme)
                loss = torch.sub(weight[at], codes * steps, out=losses[at - first])
                loss.div_(divisors[at])
                weight[at + 1 : end] -= factor[at, at + 1 : end, None] * loss
                q[at] = codes + scheme.zero_point
            scale[start // size] = steps
            lost = losses[start - first : end - first]
            weight[end:last].addmm_(factor[start:end, end:last].T, lost, alpha=-1)
        weight[last:].addmm_(factor[first:last, last:].T, losses, alpha=-1)
    return q, scale
