"""GPTQ (arXiv 2210.17323): rounds input by input; later inputs compensate for its error.

The layout wants 32 neighbouring inputs in a group, so inputs are ordered group by group: groups
by the power of their inputs, inputs within a group likewise. A group's scales are searched when
its turn comes, in the weights that the groups before have changed.

Inputs are measured as the kernels see them: after the layers that are already quantized, and
rounded to int8. `correct` first moves the weights to where these inputs give what the
full-precision inputs gave, as far as a linear can (GPTAQ, arXiv 2504.02692, solves the same
problem column by column).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from quantize.errors import CheckpointError
from quantize.fast import nearest_codes, search_scales
from quantize.schemes import GroupScheme

DAMPING = 0.01  # of the inputs' mean power: what calibration never saw is not free
_CHUNK_ROWS = 4096  # rows that are rounded together; they do not depend on each other


@dataclass(frozen=True)
class Inputs:
    """What calibration saw of a linear's K inputs, as sums over tokens."""

    power: Tensor  # (K, K) float64: of x xT, x as the quantized model has it
    drift: Tensor  # (K, K) float64: of (f - x) xT, f as the full-precision model has it

    @staticmethod
    def none(width: int) -> Inputs:
        """Returns the sums over no tokens."""
        zeros = torch.zeros(width, width, dtype=torch.float64)
        return Inputs(zeros, zeros.clone())

    @staticmethod
    def of(pairs: Iterable[tuple[Tensor, Tensor]], width: int) -> Inputs:
        """Sums up tokens: pairs of what the two models have, (L, K) float32 each."""
        sums = Inputs.none(width)
        for seen, wanted in pairs:
            sums.power.add_(seen.T @ seen)
            sums.drift.add_((wanted - seen).T @ seen)
        return sums

    def damped(self, damping: float = DAMPING) -> Tensor:
        """Returns the power, its diagonal raised by `damping` of its mean: (K, K), definite."""
        mean = self.power.diagonal().mean()
        extra = damping * mean if mean > 0 else torch.ones(())
        return self.power + torch.eye(len(self.power), dtype=self.power.dtype) * extra


def correct(weight: Tensor, inputs: Inputs) -> Tensor:
    """Returns the weights (N, K) float32 that make best use of the inputs as they are.

    They minimise |W f - W' x|^2 + damping * |W - W'|^2 over what calibration saw.
    """
    step = torch.cholesky_solve(inputs.drift.T, torch.linalg.cholesky(inputs.damped())).T
    return weight + weight @ step.to(weight.dtype)


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
        ordered = power[self._order][:, self._order]
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(ordered))
        self._factor = torch.linalg.cholesky(inverse, upper=True).float()

    def round(self, weight: Tensor, *, name: str) -> tuple[Tensor, Tensor]:
        """Quantizes weights (N, K) of any float dtype.

        Returns:
            q (N, K) uint8 codes; scale (N, K/G) float16.

        Raises:
            CheckpointError: a value of the tensor `name` is not finite.
        """
        rows, columns = weight.shape
        size = self._scheme.group_size
        q = torch.empty(rows, columns, dtype=torch.uint8)
        scale = torch.empty(rows, columns // size, dtype=torch.float16)
        for start in range(0, rows, _CHUNK_ROWS):
            chunk = slice(start, min(start + _CHUNK_ROWS, rows))
            wide = weight[chunk].float()
            if not bool(wide.isfinite().all()):
                raise CheckpointError(f"{name}: holds NaN or infinity; is the checkpoint damaged?")
            codes, scales = _round(wide[:, self._order], self._factor, self._scheme)
            q[chunk, self._order] = codes
            scale[chunk, self._order[::size] // size] = scales
        return q, scale


def _order(power: Tensor, size: int) -> Tensor:
    """Returns inputs (K,) with whole groups together, the most powerful first."""
    groups = power.view(-1, size)
    first = torch.argsort(groups.sum(-1), descending=True, stable=True)
    inside = torch.argsort(groups[first], dim=-1, descending=True, stable=True)
    return (first.unsqueeze(-1) * size + inside).flatten()


def _round(weight: Tensor, factor: Tensor, scheme: GroupScheme) -> tuple[Tensor, Tensor]:
    """Rounds ordered weights (N, K), which it changes; `factor`: upper, of the inverse power."""
    rows, columns = weight.shape
    size = scheme.group_size
    q = torch.empty(rows, columns, dtype=torch.uint8)
    scale = torch.empty(rows, columns // size, dtype=torch.float16)
    importance = factor.diagonal() ** -2
    for start in range(0, columns, size):
        inputs = slice(start, start + size)
        block = weight[:, inputs].contiguous()
        steps = search_scales(block, scheme, importance[inputs])[:, 0]
        losses = torch.empty_like(block)
        for j in range(size):
            at = start + j
            codes = nearest_codes(block[:, j], steps, scheme)
            losses[:, j] = (block[:, j] - codes * steps) / factor[at, at]
            block[:, j:] -= losses[:, j : j + 1] * factor[at, at : start + size]
            q[:, at] = (codes + scheme.zero_point).to(torch.uint8)
        scale[:, start // size] = steps.half()
        weight[:, start + size :] -= losses @ factor[inputs, start + size :]
    return q, scale
