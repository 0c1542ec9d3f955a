"""Products of 4-bit and int8 codes with int8 activations, in each processor's instructions.

A kernel asks for one thing, the product of a unit: 16 rows (the lanes) of 32 weights with 32
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
_SIGNS = -0x7F7F7F80  # 0x80808080

UNIT = 32  # inputs
Unpack = Callable[[Sequence[Expr]], list[Expr]]  # a unit's stored blocks -> 8 of int8x64
# (unpacked blocks, activations, int32x16 to add to) -> int32x16
UnitProduct = Callable[[Sequence[Expr], Sequence[Expr], Expr], Expr]
# (16 pairs of int16, one pair for all as int32, int32x16 to add to) -> int32x16
PairProduct = Callable[[Expr, Expr, Expr], Expr]


@dataclass(frozen=True)
class Product:
    """How codes of one width are multiplied."""

    unpack: Unpack
    unit: UnitProduct
    tokens: int  # that share a load of weights: as many as the registers hold sums of
    bias: int = 0  # what unpacking adds to codes


@dataclass(frozen=True)
class Products:
    """How a kind of processor multiplies."""

    q4: Product
    q8: Product
    f16_tokens: int
    queries: int  # that share a load of keys or values
    # Of 16-bit words, where it is faster than float32.
    pairs: PairProduct | None = None


def _halves(packed: Sequence[Expr]) -> list[Expr]:
    """Unpacks a unit's four blocks (uint8x64) of 4-bit codes into eight of int8x64.

    A byte's low half is an input's code, its high half that of the input 16 further.
    """
    mask = spread(T.int32(_NIBBLE))
    words = [T.Bind(T.reinterpret("int32x16", block)) for block in packed]
    low = [T.bitwise_and(word, mask) for word in words]
    high = [T.bitwise_and(T.shift_right(word, spread(T.int32(4))), mask) for word in words]
    return [T.Bind(T.reinterpret(f"int8x{_BYTES}", half)) for half in (*low, *high)]


def _as_they_are(packed: Sequence[Expr]) -> list[Expr]:
    return [T.Bind(block) for block in packed]


def _unsigned(packed: Sequence[Expr]) -> list[Expr]:
    """Adds 128 to signed codes, for instructions that take them for unsigned."""
    words = [T.reinterpret("int32x16", block) for block in packed]
    flipped = [T.bitwise_xor(word, spread(T.int32(_SIGNS))) for word in words]
    return [T.Bind(T.reinterpret(f"int8x{_BYTES}", word)) for word in flipped]


def _vnni(blocks: Sequence[Expr], activations: Sequence[Expr], sums: Expr) -> Expr:
    """AVX512-VNNI: adds four products of unsigned codes and signed activations to each row."""
    for block, four in zip(blocks, activations, strict=True):
        bytes_ = T.reinterpret(f"int8x{_BYTES}", spread(four))
        sums = T.call_llvm_pure_intrin(
            "int32x16", "llvm.x86.avx512.vpdpbusd.512", sums, block, bytes_
        )
    return sums


def _sdot(blocks: Sequence[Expr], activations: Sequence[Expr], sums: Expr) -> Expr:
    """Arm's dot product: four rows at a time; 4-bit codes fit into signed bytes, too."""
    parts = []
    for i in range(LANES // 4):
        rows = _part(sums, 4, i)
        for block, four in zip(blocks, activations, strict=True):
            bytes_ = T.reinterpret("int8x16", spread(four, 4))
            rows = T.call_llvm_pure_intrin(
                "int32x4", "llvm.aarch64.neon.sdot", rows, _part(block, 16, i), bytes_
            )
        parts.append(rows)
    return T.Shuffle(parts, list(range(LANES)))


def _pairs(lanes: int, multiply: str, add: str) -> UnitProduct:
    """Makes a product of 4-bit codes of x86's instructions that add pairs; `lanes` rows at a time.

    Pairs of bytes give 16-bit words; those of all eight blocks fit into one: 16 * 15 * 127.
    """

    def product(blocks: Sequence[Expr], activations: Sequence[Expr], sums: Expr) -> Expr:
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
        return sums + T.Shuffle(parts, list(range(LANES)))

    return product


def _signed_pairs(lanes: int, multiply: str, sign: str, add: str) -> UnitProduct:
    """Makes a product of int8 codes of the same instructions, which want one side unsigned.

    That is the codes' magnitude; the sign goes to the activation. A pair is at most 2 * 127 * 127
    and fits into a word, two pairs would not.
    """

    def product(blocks: Sequence[Expr], activations: Sequence[Expr], sums: Expr) -> Expr:
        bytes_, words = f"int8x{4 * lanes}", f"int16x{2 * lanes}"
        ones = T.broadcast(T.int16(1), 2 * lanes)
        parts = []
        for i in range(LANES // lanes):
            rows = _part(sums, lanes, i)
            for block, four in zip(blocks, activations, strict=True):
                codes = T.Bind(_part(block, 4 * lanes, i))
                spreaded = T.reinterpret(bytes_, spread(four, lanes))
                signed = T.call_llvm_pure_intrin(bytes_, sign, spreaded, codes)
                magnitude = T.call_llvm_pure_intrin(bytes_, sign, codes, codes)
                two = T.call_llvm_pure_intrin(words, multiply, magnitude, signed)
                rows = rows + T.call_llvm_pure_intrin(typed("int32", lanes), add, two, ones)
            parts.append(T.Bind(rows))
        return T.Shuffle(parts, list(range(LANES)))

    return product


def _long(blocks: Sequence[Expr], activations: Sequence[Expr], sums: Expr) -> Expr:
    """Plain NEON, 4-bit codes: products as 16-bit words, added up by multiply-accumulate.

    A word's sum is at most 8 * 15 * 127.
    """
    return sums + _rows_of(_add_pairs(_words(blocks, activations)))


def _long_signed(blocks: Sequence[Expr], activations: Sequence[Expr], sums: Expr) -> Expr:
    """Plain NEON, int8 codes: a word holds the sum of two products, at most 2 * 127 * 127."""
    pairs = None
    for i in range(0, len(blocks), 2):
        two = _add_pairs(_words(blocks[i : i + 2], activations[i : i + 2]))
        pairs = two if pairs is None else [T.Bind(a + b) for a, b in zip(pairs, two, strict=True)]
    assert pairs is not None
    return sums + _rows_of(pairs)


def _words(blocks: Sequence[Expr], activations: Sequence[Expr]) -> Expr:
    """Returns the sums of blocks' products as 16-bit words, which must hold them."""
    words = None
    for block, four in zip(blocks, activations, strict=True):
        bytes_ = T.reinterpret(f"int8x{_BYTES}", spread(four))
        product = T.cast(block, f"int16x{_BYTES}") * T.cast(bytes_, f"int16x{_BYTES}")
        words = T.Bind(product if words is None else words + product)
    return words


def _add_pairs(words: Expr) -> list[Expr]:
    """Adds neighbours of 64 words: eight int32x4, each of two rows."""
    add = "llvm.aarch64.neon.saddlp"
    parts = (_part(words, 8, i) for i in range(LANES // 2))
    return [T.Bind(T.call_llvm_pure_intrin("int32x4", add, part)) for part in parts]


def _rows_of(sums: Sequence[Expr]) -> Expr:
    """Adds neighbours of eight int32x4, each of two rows: int32x16."""
    add = "llvm.aarch64.neon.addp"
    pairs = zip(sums[::2], sums[1::2], strict=True)
    parts = [T.call_llvm_pure_intrin("int32x4", add, *pair) for pair in pairs]
    return T.Shuffle(parts, list(range(LANES)))


def _part(vector: Expr, lanes: int, index: int) -> Expr:
    """Returns `lanes` neighbours of a vector."""
    return T.Shuffle([vector], list(range(index * lanes, (index + 1) * lanes)))


def _vnni_words(words: Expr, pair: Expr, sums: Expr) -> Expr:
    other = T.reinterpret("int16x32", spread(pair))
    return T.call_llvm_pure_intrin("int32x16", "llvm.x86.avx512.vpdpwssd.512", sums, words, other)


def _add_words(lanes: int, multiply: str) -> PairProduct:
    """Makes a product of 16-bit words of x86's older instructions, `lanes` rows at a time."""

    def product(words: Expr, pair: Expr, sums: Expr) -> Expr:
        other = T.reinterpret(f"int16x{2 * lanes}", spread(pair, lanes))
        parts = [
            T.call_llvm_pure_intrin(f"int32x{lanes}", multiply, _part(words, 2 * lanes, i), other)
            for i in range(LANES // lanes)
        ]
        return sums + T.Shuffle(parts, list(range(LANES)))

    return product


_AVX2 = ("llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.psign.b", "llvm.x86.avx2.pmadd.wd")
_SSE = ("llvm.x86.ssse3.pmadd.ub.sw.128", "llvm.x86.ssse3.psign.b.128", "llvm.x86.sse2.pmadd.wd")
_KNOWN = {
    "vnni": Products(
        q4=Product(_halves, _vnni, tokens=12),
        q8=Product(_unsigned, _vnni, tokens=15, bias=128),
        f16_tokens=14,
        queries=8,
        pairs=_vnni_words,
    ),
    "avx2": Products(
        q4=Product(_halves, _pairs(8, _AVX2[0], _AVX2[2]), tokens=4),
        q8=Product(_as_they_are, _signed_pairs(8, *_AVX2), tokens=4),
        f16_tokens=6,
        queries=4,
        pairs=_add_words(8, _AVX2[2]),
    ),
    "sse": Products(
        q4=Product(_halves, _pairs(4, _SSE[0], _SSE[2]), tokens=2),
        q8=Product(_as_they_are, _signed_pairs(4, *_SSE), tokens=2),
        f16_tokens=2,
        queries=4,
        pairs=_add_words(4, _SSE[2]),
    ),
    "dotprod": Products(
        q4=Product(_halves, _sdot, tokens=4),
        q8=Product(_as_they_are, _sdot, tokens=4),
        f16_tokens=6,
        queries=4,
    ),
    "neon": Products(
        q4=Product(_halves, _long, tokens=2),
        q8=Product(_as_they_are, _long_signed, tokens=2),
        f16_tokens=6,
        queries=4,
    ),
}


def products(name: str) -> Products:
    """Returns what `configs/target/` calls by a name.

    Raises:
        ConfigError: nothing is called so.
    """
    if name not in _KNOWN:
        raise ConfigError(f"products {name!r} are unknown; known: {', '.join(_KNOWN)}")
    return _KNOWN[name]
