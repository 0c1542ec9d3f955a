"""Products of 4-bit and int8 codes with int8 activations, in each processor's instructions.

A kernel asks for one thing, the product of a unit: some rows (the lanes) of 32 weights with 32
activations of each token, exact int32 sums. How a processor computes it is
defined only in `products_x86` and `products_arm`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm.script.ir_builder import tirx as T

from convert.blocks.tir import Expr

UNIT = 32  # inputs
# (first, count) -> neighbours of a token's int8 activations for a unit
Activations = Callable[[int, int], Expr]
# (a unit's stored blocks, each token's activations, int32 sums to add to) -> int32 sums; blocks
# and sums of several tiles stand one tile after the other
UnitProduct = Callable[[Sequence[Expr], Sequence[Activations], Sequence[Expr]], list[Expr]]
# (16 pairs of int16, one pair for all as int32, int32x16 to add to) -> int32x16
PairProduct = Callable[[Expr, Expr, Expr], Expr]


@dataclass(frozen=True)
class MatrixProduct:
    """How codes of one width are multiplied."""

    unit: UnitProduct
    lanes: int  # rows that a unit has; a block holds 4 codes of each
    tokens: int  # that share a load of weights: as many as the registers hold sums of
    inputs: int = UNIT  # of a unit
    tiles: int = 1  # of weights that share a load of activations
    bias: int = 0  # what the product takes codes to be larger by


@dataclass(frozen=True)
class Pairs:
    """How pairs of 16-bit words are multiplied."""

    product: PairProduct
    queries: int  # that share a load of keys or values
    tiles: int = 1  # of keys or values that share a load of queries or weights


@dataclass(frozen=True)
class FewFunction:
    """A function of the engine that multiplies a tile of 4-bit codes with at most 16 tokens."""

    name: str  # of runtime/engine/dot_products.h
    least: int  # tokens from which on it is faster than compiled products


@dataclass(frozen=True)
class TileFunction:
    """A function of the engine that multiplies a tile of weights with several tokens."""

    name: str  # of runtime/engine/*_products.h
    inputs: int  # of a row or a token that its arguments hold side by side: n there
    least: int  # tokens from which on it is faster than compiled products
    packs: bool = True  # whether it takes tokens in tiles of 16, as weights are
    few: FewFunction | None = None  # how fewer tokens are multiplied, packed in the same way

    @property
    def fewest(self) -> int:
        """Tokens from which on this function or the other multiplies."""
        return self.least if self.few is None else self.few.least


@dataclass(frozen=True)
class Products:
    """How a kind of processor multiplies."""

    q4: MatrixProduct
    q8: MatrixProduct
    f16_tokens: int
    queries: int  # that share a load of keys or values
    pairs: Pairs | None = None  # where they are faster than float32
    several: TileFunction | None = None  # how several tokens are multiplied with codes


def each_token(
    unpack: Callable[[Sequence[Expr]], list[Expr]],
    multiply: Callable[[Sequence[Expr], Activations, Expr], Expr],
) -> UnitProduct:
    """Makes a product that unpacks a unit's codes into eight blocks once for all tokens."""

    def unit(
        packed: Sequence[Expr], tokens: Sequence[Activations], sums: Sequence[Expr]
    ) -> list[Expr]:
        blocks = unpack(packed)
        return [multiply(blocks, *of_token) for of_token in zip(tokens, sums, strict=True)]

    return unit


def as_they_are(packed: Sequence[Expr]) -> list[Expr]:
    """Unpacks codes that are int8 already."""
    return [T.Bind(block) for block in packed]


def part(vector: Expr, lanes: int, index: int) -> Expr:
    """Returns `lanes` neighbours of a vector."""
    return T.Shuffle([vector], list(range(index * lanes, (index + 1) * lanes)))
