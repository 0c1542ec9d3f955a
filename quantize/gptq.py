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

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quantize.errors import CheckpointError
from quantize.kernels import BLOCK, round_block
from quantize.schemes import GroupScheme, dequantize_groups

SAMPLED_ROWS = 128  # of a linear, evenly spread: enough to tell dampings apart
_CHUNK_ROWS = 2048  # rounded together, so that a block of inputs stays in the second-level cache
_SQUARE = 256  # inputs whose products with those after them are summed up at once


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
# For each input, with fewer of which less damping is not even tried: it takes long where inputs are
# many, and with 3 (SmolLM2's down projections) it lost 0.3 to 2.4 times what rounding loses.
FEWEST_TOKENS = 3


@dataclass(frozen=True)
class Tokens:
    """What a linear has of some tokens in the two models."""

    seen: Tensor  # (L, K) float32: inputs of the quantized model
    # (L, K) float32: inputs of the full-precision model; or the target, (L, N) float32: the output
    # that, added to the hidden states of the quantized model, gives those of that model
    aim: Tensor


@dataclass(frozen=True)
class Inputs:
    """What calibration saw of a linear's K inputs, as sums over tokens.

    With f and x a token's inputs in the full-precision and the quantized model, the output lacks
    m = W (f - x) with the weights W, or m = t - W x if there is a target t. The sum of m xT is kept
    as that of (f - x) xT, which is smaller, or as that of t xT: W takes part once, after the sum.
    """

    power: Tensor  # (K, K) float32: of x xT
    tokens: int  # summed up
    drift: Tensor | None = None  # (K, K) float32: of (f - x) xT
    target: Tensor | None = None  # (N, K) float32: of t xT

    @staticmethod
    def of(runs: Iterable[Tokens], width: int, *, targets: bool = False) -> Inputs:
        """Sums up tokens with inputs of a width K; `targets`: whether their aims are targets."""
        power, sums, tokens = torch.zeros(width, width), None, 0
        for run in runs:
            seen = run.seen
            tokens += len(seen)
            for start in range(0, width, _SQUARE):  # the upper half: the lower one mirrors it
                rows = slice(start, start + _SQUARE)
                power[rows, start:].addmm_(seen[:, rows].T, seen[:, start:])
            aim = run.aim if targets else run.aim - seen
            sums = aim.T @ seen if sums is None else sums.addmm_(aim.T, seen)
        power = power.triu_().add_(power.triu(1).T)
        return Inputs(power, tokens, *((None, sums) if targets else (sums, None)))

    def __add__(self, other: Inputs) -> Inputs:
        drift, target = _sum(self.drift, other.drift), _sum(self.target, other.target)
        return Inputs(self.power + other.power, self.tokens + other.tokens, drift, target)

    def every(self, step: int) -> Inputs:
        """Returns the same for every `step`-th row of the linear."""
        return replace(self, target=None if self.target is None else self.target[::step])

    def missing(self, weight: Tensor) -> Tensor:
        """Returns the sum of m xT for the weights W: (N, K) float32."""
        if self.target is not None:
            return self.target - weight @ self.power
        return torch.zeros_like(weight) if self.drift is None else weight @ self.drift

    def loss(self, weight: Tensor, stored: Tensor) -> float:
        """Returns |W x + m - W' x|^2 over the tokens, less what no W' changes: its value at W.

        Args:
            weight: W, (N, K) float32.
            stored: W', (N, K) float32.
        """
        error = weight - stored
        cost = error @ self.power + 2 * self.missing(weight)
        return float((cost * error).sum(dtype=torch.float64))

    def error(self, weight: Tensor, stored: Tensor) -> float:
        """Returns |W x - W' x|^2 over the tokens."""
        error = weight - stored
        return float((error @ self.power * error).sum(dtype=torch.float64))


class Compensation:
    """Corrects and quantizes linears that share their inputs, with any damping.

    A damping raises what an error costs, the power of the inputs, by a share of its mean.
    """

    def __init__(self, inputs: Inputs, scheme: GroupScheme, *, name: str) -> None:
        """Prepares for inputs.

        Args:
            inputs: of the linears.
            scheme: the number format.
            name: the tensor, for messages.

        Raises:
            CheckpointError: an input is not finite.
        """
        self._inputs, self._scheme, self._name = inputs, scheme, name
        self._order = _order(inputs.power.diagonal(), scheme.group_size)
        self._turned = self._order.flip(0)
        self._power = inputs.power[self._turned].index_select(1, self._turned)
        mean = float(inputs.power.diagonal().mean())
        if not math.isfinite(mean):
            raise CheckpointError(f"{name}: its inputs overflow; is the checkpoint damaged?")
        self._unit = mean if mean > 0 else 1.0
        self._roots: dict[float, Tensor] = {}
        self._factors: dict[float, Tensor] = {}

    def correct(self, weight: Tensor, share: float) -> Tensor:
        """Returns the weights (N, K) float32 that make best use of the inputs as they are.

        They minimise |W x + m - W' x|^2 over the tokens, plus the damping times |W - W'|^2.

        Args:
            weight: W, (N, K) float32.
            share: the damping.
        """
        inputs, root = self._inputs, self._root(share)
        # In a wide linear a matrix of K rows is the smaller one to solve for.
        wide = inputs.drift is not None and len(weight) > weight.shape[1]
        step = inputs.drift if wide and inputs.drift is not None else inputs.missing(weight)
        step = torch.linalg.solve_triangular(root.T, step[:, self._turned], upper=True, left=False)
        solved = torch.empty_like(step)
        solved[:, self._turned] = torch.linalg.solve_triangular(root, step, upper=False, left=False)
        return weight + (weight @ solved if wide else solved)

    def round(self, weight: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Quantizes weights.

        Args:
            weight: (N, K), any float dtype.
            share: the damping.

        Returns:
            q (N, K) uint8 codes; scale (N, K/G) float16.

        Raises:
            CheckpointError: a value of the tensor is not finite.
        """
        factor = self._factor(share)
        rows, columns = weight.shape
        size = self._scheme.group_size
        q = torch.empty(columns, rows, dtype=torch.uint8)
        scale = torch.empty(columns // size, rows, dtype=torch.float16)
        for start in range(0, rows, _CHUNK_ROWS):
            chunk = slice(start, min(start + _CHUNK_ROWS, rows))
            wide = weight[chunk].float()
            if not bool(wide.isfinite().all()):
                raise CheckpointError(
                    f"{self._name}: holds NaN or infinity; is the checkpoint damaged?"
                )
            ordered = wide.T.contiguous()[self._order]
            codes, scales = _round(ordered, factor, self._scheme)
            q[self._order, chunk] = codes
            scale[self._order[::size] // size, chunk] = scales
        return q.T.contiguous(), scale.T.contiguous()

    def compensate(self, weight: Tensor, damping: Damping) -> tuple[Tensor, Tensor]:
        """Corrects weights (N, K) float32, then quantizes them as `round` does."""
        return self.round(self.correct(weight, damping.correction), damping.rounding)

    def _root(self, share: float) -> Tensor:
        """Returns the lower L (K, K) with the damped power L LT, inputs in reversed order."""
        if share not in self._roots:
            power, more = self._power.clone(), share * self._unit
            power.diagonal().add_(more)
            root, failed = torch.linalg.cholesky_ex(power)
            while failed:  # sums in float32 may be further from definite than the damping is wide
                power.diagonal().add_(more)
                root, failed = torch.linalg.cholesky_ex(power)
                more *= 2
            self._roots[share] = root
        return self._roots[share]

    def _factor(self, share: float) -> Tensor:
        """Returns the upper U (K, K) with the damped power's inverse UT U, inputs in order."""
        if share not in self._factors:
            self._factors[share] = _invert_lower(self._root(share)).flip(0, 1)
        return self._factors[share]


def can_choose_damping(tokens: float, width: int) -> bool:
    """Says whether tokens suffice to try less damping on a linear's inputs."""
    return tokens >= FEWEST_TOKENS * width


def choose_damping(
    weight: Tensor, seen: Inputs, held_out: Inputs, scheme: GroupScheme, *, name: str
) -> Damping:
    """Returns the damping with which weights serve tokens best that rounding has not seen.

    What is right depends on the model: the demo, whose questions are all alike, needs hardly any;
    on real text little damping fits the weights to the samples. So the first one counts unless
    another is better by `MARGIN`, or `can_choose_damping` says that there are too few tokens.

    Args:
        weight: (N, K) float32.
        seen: the inputs to round with.
        held_out: the inputs to judge by.
        scheme: the number format.
        name: the tensor, for messages.

    Raises:
        CheckpointError: a value of the tensor is not finite.
    """
    best, *others = DAMPINGS
    if not can_choose_damping(seen.tokens, weight.shape[1]):
        return best
    step = -(-len(weight) // SAMPLED_ROWS)
    weight, held_out = weight[::step], held_out.every(step)
    compensation = Compensation(seen.every(step), scheme, name=name)

    def stored(damping: Damping) -> Tensor:
        q, scale = compensation.compensate(weight, damping)
        return torch.from_numpy(dequantize_groups(q.numpy(), scale.numpy(), scheme))

    safe = stored(best)
    least = held_out.loss(weight, safe) - MARGIN * held_out.error(weight, safe)
    for damping in others:
        loss = held_out.loss(weight, stored(damping))
        if loss >= least:  # with less damping still, the loss hardly ever comes down again
            break
        least, best = loss, damping
    return best


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other


def _order(power: Tensor, size: int) -> Tensor:
    """Returns inputs (K,) with whole groups together, the most powerful first."""
    groups = power.view(-1, size)
    first = torch.argsort(groups.sum(-1), descending=True, stable=True)
    inside = torch.argsort(groups[first], dim=-1, descending=True, stable=True)
    return (first.unsqueeze(-1) * size + inside).flatten()


def _invert_lower(root: Tensor) -> Tensor:
    """Inverts a lower triangular matrix (K, K) half by half, mostly in large products."""
    half = len(root) // 2
    if half < 2 * BLOCK:  # smaller ones gain nothing
        one = torch.eye(len(root), dtype=root.dtype)
        small: Tensor = torch.linalg.solve_triangular(root, one, upper=False)
        return small
    inverse = torch.zeros_like(root)
    first, last = _invert_lower(root[:half, :half]), _invert_lower(root[half:, half:])
    inverse[:half, :half], inverse[half:, half:] = first, last
    corner = last @ root[half:, :half]
    corner = torch.linalg.solve_triangular(root[:half, :half], corner, upper=False, left=False)
    inverse[half:, :half] = corner.neg_()
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
    for first in range(0, columns, BLOCK):
        last = min(first + BLOCK, columns)
        block, groups = slice(first, last), slice(first // size, last // size)
        square = factor[block, block]
        losses = round_block(weight[block], square, scheme, q[block], scale[groups])
        weight[last:].addmm_(factor[block, last:].T, losses, alpha=-1)
    return q, scale
