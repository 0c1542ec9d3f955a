"""Matrices held as small as they are exact, and made float32 a few rows at a time.

A checkpoint of bfloat16 or float16 says no more in float32, which takes twice the memory; codes
and scales take a third of theirs. A matrix is therefore held as it is stored, mapped from its file
if it lies there, and a run of its rows that fits the processor's cache is converted, multiplied in
float32 and forgotten; every processor does so with a share of the rows. Every weight is converted
exactly. Within an output, the order of the sum is the float32 product's own, which may depend on
how many rows are multiplied at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.reference.parallel import parallel_map

_BLOCK_VALUES = 1 << 18  # 1 MiB of float32, half of a second-level cache
_KERNEL_ROWS = 48  # that float32 kernels take at once; other runs are a sixth slower


@dataclass(frozen=True)
class GroupCodes:
    """A matrix (N, K) as groups of codes along its inputs: a value is code * scale, in float32."""

    codes: Tensor  # (N, G * group size) int8, without a zero point; what is beyond K is ignored
    scale: Tensor  # (N, G) float32
    columns: int  # K

    @property
    def shape(self) -> tuple[int, int]:
        """N and K."""
        return len(self.codes), self.columns

    def __len__(self) -> int:
        """Returns N."""
        return len(self.codes)

    def __getitem__(self, rows: slice | Tensor) -> GroupCodes:
        """Returns some rows: a slice's, or those of ids (L,)."""
        return GroupCodes(self.codes[rows], self.scale[rows], self.columns)

    def float(self) -> Tensor:
        """Returns the values (N, K) float32."""
        return self.write(torch.empty(self.codes.shape))

    def write(self, out: Tensor) -> Tensor:
        """Writes the values over `out`, float32 of the codes' shape; returns them, (N, K)."""
        groups = out.view(*self.scale.shape, -1)
        groups.copy_(self.codes.view_as(groups)).mul_(self.scale.unsqueeze(-1))
        return out[:, : self.columns]


Weight = Tensor | GroupCodes  # (N, K); a tensor of any float dtype


class LazyLinear(nn.Linear):
    """A linear whose weight keeps its dtype, and which computes in float32; see `multiply`."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., K) to (..., N), of the same dtype: sums of 16-bit inputs are in float32."""
        bias = None if self.bias is None else self.bias.float()
        return multiply(x.float(), self.weight, bias).to(x.dtype)


class LazyEmbedding(nn.Module):
    """A table of embeddings that is held in another form than float32."""

    def __init__(self, weight: Weight) -> None:
        """Args: weight: (V, D)."""
        super().__init__()
        if isinstance(weight, Tensor):
            weight = nn.Parameter(weight, requires_grad=False)
        self.weight = weight

    def forward(self, ids: Tensor) -> Tensor:
        """Maps ids of any shape to embeddings (..., D) float32."""
        return self.weight[ids.flatten()].float().view(*ids.shape, -1)


def multiply(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """Multiplies x (..., K) float32 by weight (N, K) and adds bias (N,): (..., N) float32."""
    if isinstance(weight, Tensor) and weight.dtype == torch.float32:
        return F.linear(x, weight, bias)
    rows, columns = weight.shape
    flat = x.reshape(-1, columns)
    out = torch.empty(len(flat), rows)

    def fill(part: slice) -> None:
        some, into = weight[part], out[:, part]
        _multiply(flat, some, None if bias is None else bias[part], into)

    threads = torch.get_num_threads()
    parts = list(row_blocks(rows, columns, -(-rows * columns // threads)))
    if len(parts) == 1:
        fill(parts[0])
    else:
        parallel_map(fill, parts)
    return out.view(*x.shape[:-1], rows)


def _multiply(x: Tensor, weight: Weight, bias: Tensor | None, out: Tensor) -> None:
    """Does what `multiply` does with x (L, K), on one processor, into out (L, N)."""
    rows, columns = weight.shape
    blocks = list(row_blocks(rows, columns, _BLOCK_VALUES))
    width = columns if isinstance(weight, Tensor) else weight.codes.shape[1]
    # One buffer for all: fresh memory costs a sixth more.
    buffer = torch.empty(blocks[0].stop, width)
    for part in blocks:
        held, into = weight[part], buffer[: part.stop - part.start]
        block = into.copy_(held) if isinstance(held, Tensor) else held.write(into)
        if bias is None:
            torch.mm(x, block.T, out=out[:, part])
        else:
            torch.addmm(bias[part], x, block.T, out=out[:, part])


def row_blocks(rows: int, columns: int, values: int) -> Iterator[slice]:
    """Cuts a matrix into runs of rows with about `values` values, in order."""
    step = max(_KERNEL_ROWS, values // max(columns, 1) // _KERNEL_ROWS * _KERNEL_ROWS)
    for first in range(0, rows, step):
        yield slice(first, min(first + step, rows))


def make_lazy(model: nn.Module) -> None:
    """Makes a model without storage hold its linears and embeddings in any dtype.

    Only its own modules are replaced; what else has a matrix stays as it is.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                held = LazyLinear(
                    child.in_features, child.out_features, child.bias is not None, device="meta"
                )
                setattr(parent, name, held)
            elif type(child) is nn.Embedding:
                setattr(parent, name, LazyEmbedding(child.weight))
