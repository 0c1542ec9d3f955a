"""One head's columns of a tensor of tokens: how attention reads and rounds them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tvm.script.ir_builder import tirx as T

from convert.blocks.attention import Heads
from convert.blocks.maths import nearest
from convert.blocks.tir import (
    LANES,
    Expr,
    Kernel,
    fold,
    local,
    parts,
    prefetch,
    span,
    spread,
    store,
)

AHEAD = 8  # rows from the one that is read to the one that is prefetched


@dataclass(frozen=True)
class HeadRows:
    """One head's columns of a tensor of tokens: they begin at `first`."""

    rows: Expr
    first: Expr
    head_dim: int

    def parts(self, row: Expr) -> Iterator[tuple[int, int, Expr]]:
        """Yields a row's vectors: (column within the head, lanes, values)."""
        for at, lanes in parts(self.head_dim):
            yield at, lanes, self.rows[row, span(self.first + at, lanes)]

    def prefetch(self, row: Expr) -> None:
        """Prefetches a row: rows are too far apart for the processor's own prefetcher."""
        for at in range(0, self.head_dim, LANES):
            prefetch(self.rows[row, self.first + at])

    def add_magnitudes(self, largest: Expr, row: Expr) -> None:
        """Raises `largest`, 16 lanes, to the magnitudes of a row."""
        for _, lanes, value in self.parts(row):
            raised = T.max(largest[span(0, lanes)], magnitude(value, lanes))
            store(largest, raised, span(0, lanes))

    def step(self, row: Expr, codes: int) -> Expr:
        """Returns the value of one code where a row's largest magnitude has the code `codes`."""
        largest = local((LANES,))
        store(largest, spread(T.float32(0)), span(0))
        self.prefetch(row + AHEAD)
        self.add_magnitudes(largest, row)
        return step_of(fold(largest, T.max, LANES), codes)

    def round(self, codes: Expr, to: Expr, row: Expr, inverse: Expr) -> None:
        """Rounds a row, times the inverse of its step, into row `to` of codes."""
        dtype = str(codes.dtype).removeprefix("T.")
        for at, lanes, value in self.parts(row):
            code = nearest(value * spread(inverse, lanes), lanes)[1]
            code = code if dtype == "int16" else T.cast(code, f"{dtype}x{lanes}")
            store(codes, code, to, span(at, lanes))


class HeadTensors:
    """The tensors of an attention kernel: q, k, v, and the result (queries, heads * head_dim)."""

    def __init__(self, kern: Kernel, heads: int, head_dim: int, places: Sequence[Heads]) -> None:
        """Adds them to a kernel. Args: places: where a row of q, of k and of v holds its heads."""
        self.queries, self.keys = kern.length("queries"), kern.length("keys")
        lengths = {"q": self.queries, "k": self.keys, "v": self.keys, "out": self.queries}
        self._head_dim, self._places = head_dim, (*places, Heads(heads * head_dim))
        self._rows = [
            kern.tensor(name, (length, place.columns))
            for (name, length), place in zip(lengths.items(), self._places, strict=True)
        ]

    def of(self, head: Expr) -> tuple[HeadRows, HeadRows, HeadRows, HeadRows]:
        """Returns a head's columns of q, k, v and the result."""
        at = T.Bind(head * self._head_dim)
        q, k, v, out = (
            HeadRows(rows, place.first + at, self._head_dim)
            for rows, place in zip(self._rows, self._places, strict=True)
        )
        return q, k, v, out


def magnitude(value: Expr, lanes: int) -> Expr:
    """Returns |value|."""
    value = T.Bind(value)
    return T.max(value, spread(T.float32(0), lanes) - value)


def step_of(largest: Expr, codes: int) -> Expr:
    """Returns the value of one code where `largest` has the code `codes`; 1 where it is 0."""
    step = T.Bind(largest / T.float32(codes))
    return T.Bind(T.Select(step == T.float32(0), T.float32(1), step))
