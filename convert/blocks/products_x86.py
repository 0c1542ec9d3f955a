"""Products of codes on x86-64: AMX, AVX512-VNNI, AVX2 and SSE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from tvm.script.ir_builder import tirx as T

from convert.blocks.products import (
    UNIT,
    Activations,
    MatrixProduct,
    PairProduct,
    Pairs,
    Products,
    TileFunction,
    UnitProduct,
    each_token,
    part,
)
from convert.blocks.tir import LANES, Expr, spread, typed

_NIBBLE = 0x0F0F0F0F
_SIGNS = -0x7F7F7F80  # 0x80808080


def _halves(lanes: int) -> Callable[[Sequence[Expr]], list[Expr]]:
    """Makes the unpacking of four blocks of 4-bit codes into eight of int8.

    A byte's low half is an input's code, its high half that of the input 16 further.
    """

    def unpack(packed: Sequence[Expr]) -> list[Expr]:
        mask, four = spread(T.int32(_NIBBLE), lanes), spread(T.int32(4), lanes)
        words = [T.Bind(T.reinterpret(typed("int32", lanes), block)) for block in packed]
        low = [T.bitwise_and(word, mask) for word in words]
        # There is no shift of bytes.
        high = [T.bitwise_and(T.shift_right(word, four), mask) for word in words]
        return [T.Bind(T.reinterpret(f"int8x{4 * lanes}", half)) for half in (*low, *high)]

    return unpack


def _unsigned(packed: Sequence[Expr]) -> list[Expr]:
    """Adds 128 to signed codes, for instructions that take them for unsigned."""
    words = [T.reinterpret("int32x16", block) for block in packed]
    flipped = [T.bitwise_xor(word, spread(T.int32(_SIGNS))) for word in words]
    return [T.Bind(T.reinterpret(f"int8x{4 * LANES}", word)) for word in flipped]


def _fours(token: Activations, lanes: int) -> list[Expr]:
    """Returns a token's activations, four for every lane."""
    words = (T.reinterpret("int32", token(i, 4)) for i in range(0, UNIT, 4))
    return [T.reinterpret(f"int8x{4 * lanes}", spread(word, lanes)) for word in words]


def _vnni(unpack: Callable[[Sequence[Expr]], list[Expr]]) -> UnitProduct:
    """Makes AVX512-VNNI's product of unsigned codes and signed activations, four at a time."""

    def unit(
        packed: Sequence[Expr], tokens: Sequence[Activations], sums: Sequence[Expr]
    ) -> list[Expr]:
        tiles = len(sums) // len(tokens)
        size = len(packed) // tiles
        unpacked = [unpack(packed[i * size : (i + 1) * size]) for i in range(tiles)]
        sums = list(sums)
        # An instruction waits for the one before it on the same sum: so all sums take turns.
        for i in range(len(unpacked[0])):
            for m, token in enumerate(tokens):
                word = T.reinterpret("int32", token(4 * i, 4))
                bytes_ = T.Bind(T.reinterpret(f"int8x{4 * LANES}", spread(word)))
                for at, blocks in zip(range(m, len(sums), len(tokens)), unpacked, strict=True):
                    sums[at] = T.Bind(
                        T.call_llvm_pure_intrin(
                            "int32x16", "llvm.x86.avx512.vpdpbusd.512", sums[at], blocks[i], bytes_
                        )
                    )
        return sums

    return unit


def _pairs(lanes: int, multiply: str, add: str) -> UnitProduct:
    """Makes a product of 4-bit codes of x86's instructions that add pairs; `lanes` rows at a time.

    Pairs of bytes give 16-bit words; those of all eight blocks fit into one: 16 * 15 * 127.
    """

    def product(blocks: Sequence[Expr], token: Activations, sums: Expr) -> Expr:
        words = None
        for block, bytes_ in zip(blocks, _fours(token, lanes), strict=True):
            two = T.call_llvm_pure_intrin(f"int16x{2 * lanes}", multiply, block, bytes_)
            words = two if words is None else words + two
        ones = T.broadcast(T.int16(1), 2 * lanes)
        return sums + T.call_llvm_pure_intrin(typed("int32", lanes), add, words, ones)

    return each_token(_halves(lanes), product)


def _signed_pairs(rows: int, multiply: str, sign: str, add: str) -> UnitProduct:
    """Makes a product of int8 codes of the same instructions, which want one side unsigned.

    That is the codes' magnitude; the sign goes to the activation. A pair is at most 2 * 127 * 127
    and fits into a word, two pairs would not. A load of activations is for two registers of rows.
    """
    bytes_, words, dtype = f"int8x{4 * rows}", f"int16x{2 * rows}", f"int32x{rows}"

    def unit(
        packed: Sequence[Expr], tokens: Sequence[Activations], sums: Sequence[Expr]
    ) -> list[Expr]:
        sums, ones = list(sums), T.broadcast(T.int16(1), 2 * rows)
        for i, block in enumerate(packed):
            block = T.Bind(block)
            codes = [T.Bind(part(block, 4 * rows, half)) for half in range(2)]
            magnitudes = [
                T.Bind(T.call_llvm_pure_intrin(bytes_, sign, half, half)) for half in codes
            ]
            for m, token in enumerate(tokens):
                four = spread(T.reinterpret("int32", token(4 * i, 4)), rows)
                four = T.Bind(T.reinterpret(bytes_, four))
                dots = []
                for half, magnitude in zip(codes, magnitudes, strict=True):
                    signed = T.call_llvm_pure_intrin(bytes_, sign, four, half)
                    two = T.call_llvm_pure_intrin(words, multiply, magnitude, signed)
                    dots.append(T.call_llvm_pure_intrin(dtype, add, two, ones))
                sums[m] = T.Bind(sums[m] + T.Shuffle(dots, list(range(2 * rows))))
        return sums

    return unit


def _vnni_words(words: Expr, pair: Expr, sums: Expr) -> Expr:
    other = T.reinterpret("int16x32", spread(pair))
    return T.call_llvm_pure_intrin("int32x16", "llvm.x86.avx512.vpdpwssd.512", sums, words, other)


def _add_words(lanes: int, multiply: str) -> PairProduct:
    """Makes a product of 16-bit words of x86's older instructions, `lanes` rows at a time."""

    def product(words: Expr, pair: Expr, sums: Expr) -> Expr:
        other = T.reinterpret(f"int16x{2 * lanes}", spread(pair, lanes))
        parts = [
            T.call_llvm_pure_intrin(f"int32x{lanes}", multiply, part(words, 2 * lanes, i), other)
            for i in range(LANES // lanes)
        ]
        return sums + T.Shuffle(parts, list(range(LANES)))

    return product


_AVX2 = ("llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.psign.b", "llvm.x86.avx2.pmadd.wd")
_SSE = ("llvm.x86.ssse3.pmadd.ub.sw.128", "llvm.x86.ssse3.psign.b.128", "llvm.x86.sse2.pmadd.wd")
# Units of int8 are short: from longer ones LLVM loads more activations ahead than registers hold
# beside the sums.
_VNNI = Products(
    q4=MatrixProduct(_vnni(_halves(LANES)), lanes=LANES, tokens=12),
    q8=MatrixProduct(_vnni(_unsigned), lanes=LANES, inputs=4, tokens=12, tiles=2, bias=128),
    f16_tokens=14,
    queries=8,
    pairs=Pairs(_vnni_words, queries=8, tiles=2),
)
# runtime/engine/tile_products.h
_AMX = TileFunction("minicpmv_tile_products", inputs=4, least=8, packs=False)
X86 = {
    "amx": replace(_VNNI, several=_AMX),
    "vnni": _VNNI,
    "avx2": Products(
        q4=MatrixProduct(_pairs(8, _AVX2[0], _AVX2[2]), lanes=8, tokens=4),
        q8=MatrixProduct(_signed_pairs(8, *_AVX2), lanes=LANES, inputs=8, tokens=4),
        f16_tokens=6,
        queries=4,
        pairs=Pairs(_add_words(8, _AVX2[2]), queries=4, tiles=2),
    ),
    "sse": Products(
        q4=MatrixProduct(_pairs(4, _SSE[0], _SSE[2]), lanes=4, tokens=2),
        q8=MatrixProduct(_signed_pairs(4, *_SSE), lanes=8, inputs=16, tokens=4),
        f16_tokens=2,
        queries=4,
        pairs=Pairs(_add_words(4, _SSE[2]), queries=8),
    ),
}
