"""Products of 4-bit codes with int8 activations, in the instructions of each kind of processor.

A kernel asks for one thing, the product of a group: 16 rows (the lanes) of 32 weights with 32
activations of one token, an exact int32 sum per row. How a processor does that is said here, and
nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm.script.ir_builder import tirx as T

from convert.blocks.tir import LANES, Expr, spread, typed
from quantize.errors import ConfigError

_BYTES = 4 * LANES  # of a block: 4 codes for each row
_NIBBLE = 0x0F0F0F0F

# (unpacked blocks, activations, offset) -> int32x16
GroupProduct = Callable[[Sequence[Expr], Sequence[Expr], Expr], Expr]


@dataclass(frozen=True)
class Products:
    """How a kind of processor multiplies codes."""

    group: GroupProduct
    # Tokens that share a load of weights: as many as the registers hold sums of.
    q4_tokens: int
    f16_tokens: int
    queries: int  # that share a load of keys or values


def unpack(packed: Sequence[Expr]) -> list[Expr]:
    """Unpacks a group's four blocks (uint8x64) into eight of int8x64 codes.

    A byte's low half is an input's code, its high half that of the input 16 further.
    """
    mask = spread(T.int32(_NIBBLE))
    words = [T.Bind(T.reinterpret("int32x16", block)) for block in packed]
    low = [T.bitwise_and(word, mask) for word in words]
    high = [T.bitwise_and(T.shift_right(word, spread(T.int32(4))), mask) for word in words]
    return [T.Bind(T.reinterpret(f"int8x{_BYTES}", half)) for half in (*low, *high)]


def _vnni(blocks: Sequence[Expr], activations: Sequence[Expr], offset: Expr) -> Expr:
    """AVX512-VNNI: adds four products of unsigned codes and signed activations to each row."""
    sums = spread(offset)
    for block, four in zip(blocks, activations, strict=True):
        bytes_ = T.reinterpret(f"int8x{_BYTES}", spread(four))
        sums = T.call_llvm_pure_intrin(
            "int32x16", "llvm.x86.avx512.vpdpbusd.512", sums, block, bytes_
        )
    return sums


def _sdot(blocks: Sequence[Expr], activations: Sequence[Expr], offset: Expr) -> Expr:
    """Arm's dot product: four rows at a time; codes fit into signed bytes, too."""
    parts = []
    for i in range(LANES // 4):
        sums = spread(offset, 4)
        for block, four in zip(blocks, activations, strict=True):
            bytes_ = T.reinterpret("int8x16", spread(four, 4))
            sums = T.call_llvm_pure_intrin(
                "int32x4", "llvm.aarch64.neon.sdot", sums, _part(block, 16, i), bytes_
            )
        parts.append(sums)
    return T.Shuffle(parts, list(range(LANES)))


def _pairs(lanes: int, multiply: str, add: str) -> GroupProduct:
    """Makes a group's product of x86's multiplications that add pairs; `lanes` rows at a time.

    Pairs of bytes give 16-bit words; those of all eight blocks fit into one: 16 * 15 * 127.
    """

    def product(blocks: Sequence[Expr], activations: Sequence[Expr], offset: Expr) -> Expr:
        parts = []
        for i in range(LANES // lanes):
            words = None
            for block, four in zip(blocks, activations, strict=True):
                bytes_ = T.reinterpret(f"int8x{4 * lanes}", spread(four, lanes))
                codes = _part(block, 4 * lanes, i)
                two = T.call_llvm_pure_intrin(f"int16x{2 * lanes}", multiply, codes, bytes_)
                words = two if words is None else words + two
            ones = T.broadcast(T.int16(1), 2 * lanes)
            parts.append(T.call_llvm_pure_intrin(typed("int32", lanes), add, words, ones))
        return T.Shuffle(parts, list(range(LANES))) + spread(offset)

    return product


def _long(blocks: Sequence[Expr], activations: Sequence[Expr], offset: Expr) -> Expr:
    """Plain NEON: products as 16-bit words, which LLVM makes multiply-accumulate of.

    A word's sum is at most 8 * 15 * 127.
    """
    words = None
    for block, four in zip(blocks, activations, strict=True):
        bytes_ = T.reinterpret(f"int8x{_BYTES}", spread(four))
        product = T.cast(block, f"int16x{_BYTES}") * T.cast(bytes_, f"int16x{_BYTES}")
        words = T.Bind(product if words is None else words + product)
    parts = []
    for i in range(LANES // 4):  # rows 4 i … 4 i + 3
        halves = [
            T.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.saddlp", _part(words, 8, j))
            for j in (2 * i, 2 * i + 1)
        ]
        parts.append(T.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.addp", *halves))
    return T.Shuffle(parts, list(range(LANES))) + spread(offset)


def _part(vector: Expr, lanes: int, index: int) -> Expr:
    """Returns `lanes` neighbours of a vector."""
    return T.Shuffle([vector], list(range(index * lanes, (index + 1) * lanes)))


_KNOWN = {
    "vnni": Products(_vnni, q4_tokens=12, f16_tokens=14, queries=8),
    "avx2": Products(
        _pairs(8, "llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd"),
        q4_tokens=4,
        f16_tokens=6,
        queries=4,
    ),
    "sse": Products(
        _pairs(4, "llvm.x86.ssse3.pmadd.ub.sw.128", "llvm.x86.sse2.pmadd.wd"),
        q4_tokens=2,
        f16_tokens=2,
        queries=4,
    ),
    "dotprod": Products(_sdot, q4_tokens=4, f16_tokens=6, queries=4),
    "neon": Products(_long, q4_tokens=2, f16_tokens=6, queries=4),
}


def products(name: str) -> Products:
    """Returns what `configs/target/` calls by a name.

    Raises:
        ConfigError: nothing is called so.
    """
    if name not in _KNOWN:
        raise ConfigError(f"products {name!r} are unknown; known: {', '.join(_KNOWN)}")
    return _KNOWN[name]
