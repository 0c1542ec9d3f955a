"""GPTQ (arXiv 2210.17323): rounds input by input; later inputs compensate for its error.

The layout wants 32 neighbouring inputs in a group, so inputs are ordered group by group: groups
by the power of their inputs, inputs within a group likewise. A group's scales are searched when
its turn comes, in the weights that the groups before have changed.

Inputs are measured as the kernels see them: after the layers that are already quantized, and
rounded to int8. `Compensation.correct` first moves the weights to where these inputs give what
the full-precision inputs gave, as far as a linear can (GPTAQ, arXiv 2504.02692, solves the same
problem column by column).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from quantize.errors import CheckpointError
from quantize.fast import nearest_codes, search_scales
from quantize.schemes import GroupScheme, dequantize_groups

DAMPINGS = (0.01, 0.3)  # of the inputs' mean power; `choose_damping` picks one
SAMPLED_ROWS = 128  # of a linear, evenly spread: enough to tell dampings apart
_CHUNK_ROWS = 1024  # rounded together, so that a block of inputs stays in the second-level cache
_BLOCK = 128  # inputs whose errors reach the inputs after them in one product
_SQUARE = 512  # inputs whose products with those after them are summed up at once


@dataclass(frozen=True)
class Inputs:
    """What calibration saw of a linear's K inputs, as sums over tokens."""

    power: Tensor  # (K, K) float64: of x xT, x as the quantized model has it
    drift: Tensor  # (K, K) float32: of (f - x) xT, f as the full-precision model has it

    @staticmethod
    def of(pairs: Iterable[tuple[Tensor, Tensor]], width: int) -> Inputs:
        """Sums up tokens: pairs of what the two models have, (L, K) float32 each."""
        power, drift = torch.zeros(width, width), torch.zeros(width, width)
        for seen, wanted in pairs:
            for start in range(0, width, _SQUARE):  # the upper half: the lower one mirrors it
                rows = slice(start, start + _SQUARE)
                power[rows, start:].addmm_(seen[:, rows].T, seen[:, start:])
            drift.addmm_((wanted - seen).T, seen)
        return Inputs((power.triu() + power.triu(1).T).double(), drift)

    def __add__(self, other: Inputs) -> Inputs:
        return Inputs(self.power + other.power, self.drift + other.drift)

    def loss(self, weight: Tensor, stored: Tensor) -> float:
        """Returns |W f - W' x|^2 over the tokens, less |W (f - x)|^2, which no W' changes.

        Args:
            weight: W, (N, K) float32.
            stored: W', (N, K) float32.
        """
        error = weight - stored
        cost = error @ self.power.float() + 2 * (weight @ self.drift)
        return float((cost * error).sum(dtype=torch.float64))

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

    def correct(self, weight: Tensor, drift: Tensor) -> Tensor:
        """Returns the weights (N, K) float32 that make best use of the inputs as they are.

        They minimise |W f - W' x|^2 over what calibration saw, plus the damping times |W - W'|^2.

        Args:
            weight: (N, K) float32.
            drift: (K, K) float32, see `Inputs`.
        """
        wide = len(weight) > len(drift)  # then a matrix of K rows is the smaller one to solve for
        step = (drift if wide else weight @ drift)[:, self._order]
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


def choose_damping(
    weight: Tensor, seen: Inputs, held_out: Inputs, scheme: GroupScheme, *, name: str
) -> float:
    """Returns the damping with which weights serve tokens best that rounding has not seen.

    What is right depends on the model: the demo, whose questions are all alike, needs hardly any;
    on real text little damping fits the weights to the samples.

    Args:
        weight: (N, K) float32.
        seen: the inputs to round with.
        held_out: the inputs to judge by.
        scheme: the number format.
        name: the tensor, for messages.

    Raises:
        CheckpointError: a value of the tensor is not finite.
    """
    sampled = weight[:: -(-len(weight) // SAMPLED_ROWS)]

    def loss(damping: float) -> float:
        compensation = Compensation(seen.damped(damping), scheme)
        q, scale = compensation.round(compensation.correct(sampled, seen.drift), name=name)
        stored = torch.from_numpy(dequantize_groups(q.numpy(), scale.numpy(), scheme))
        return held_out.loss(sampled, stored)

    return min(DAMPINGS, key=loss)


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
