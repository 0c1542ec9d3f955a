"""Products of codes on arm64: plain NEON, dot products, and int8 matrix products (i8mm)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from tvm.script.ir_builder import tirx as T

from convert.blocks.products import (
    UNIT,
    Activations,
    FewFunction,
    MatrixProduct,
    Products,
    TileFunction,
    UnitProduct,
    as_they_are,
    each_token,
    part,
)
from convert.blocks.tir import LANES, Expr, spread

_ROWS = 4  # lanes of a register's words
_BYTES = 4 * _ROWS


def _halves(packed: Sequence[Expr], size: int = _BYTES) -> list[Expr]:
    """Unpacks blocks of 4-bit codes, `size` bytes each, into twice as many of int8.

    A byte's low half is an input's code, its high half that of the input 16 further.
    """
    bytes_ = [T.Bind(block) for block in packed]
    low = [T.bitwise_and(block, T.broadcast(T.uint8(15), size)) for block in bytes_]
    high = [T.shift_right(block, T.broadcast(T.uint8(4), size)) for block in bytes_]
    return [T.Bind(T.reinterpret(f"int8x{size}", half)) for half in (*low, *high)]


def _sdot(unpack: Callable[[Sequence[Expr]], list[Expr]]) -> UnitProduct:
    """Arm's dot product, four products for each row; 4-bit codes fit into signed bytes, too."""

    def unit(
        packed: Sequence[Expr], tokens: Sequence[Activations], sums: Sequence[Expr]
    ) -> list[Expr]:
        registers = [
            [T.Bind(T.reinterpret("int32x4", token(i, _BYTES))) for i in range(0, UNIT, _BYTES)]
            for token in tokens
        ]
        out = list(sums)
        for i, block in enumerate(unpack(packed)):
            for m, of_token in enumerate(registers):  # side by side: none waits for its own sum
                # Of a lane of the register: the instruction takes it as it is.
                four = T.reinterpret("int8x16", T.Shuffle([of_token[i // 4]], [i % 4] * 4))
                dot = T.call_llvm_pure_intrin(
                    "int32x4", "llvm.aarch64.neon.sdot", out[m], block, four
                )
                out[m] = T.Bind(dot)
        return out

    return unit


def _smmla(by_token: UnitProduct, packed_codes: bool) -> UnitProduct:
    """Makes a product of two rows and two tokens at a time, 8 inputs of each.

    A block has 4 inputs of each row: two blocks' words are put side by side, before 4-bit codes
    are unpacked. A token without a fellow takes `by_token`.
    """

    def unit(
        packed: Sequence[Expr], tokens: Sequence[Activations], sums: Sequence[Expr]
    ) -> list[Expr]:
        if len(tokens) % 2:
            return by_token(packed, tokens, sums)
        pairs = []  # of rows 0 and 1, then of rows 2 and 3, for each 8 inputs
        for a, b in zip(packed[::2], packed[1::2], strict=True):
            words = [T.Bind(T.reinterpret("int32x4", block)) for block in (a, b)]
            for lanes in ([0, 4, 1, 5], [2, 6, 3, 7]):
                dtype = f"uint8x{_BYTES}" if packed_codes else f"int8x{_BYTES}"
                pairs.append(T.reinterpret(dtype, T.Shuffle(words, lanes)))
        blocks = _halves(pairs) if packed_codes else as_they_are(pairs)
        out: list[Expr] = []
        for first in range(0, len(tokens), 2):
            sides: list[Expr] = []  # both tokens' activations for each 8 inputs
            for i in range(0, UNIT, _BYTES):
                two = [T.Bind(token(i, _BYTES)) for token in tokens[first : first + 2]]
                for at in (0, 8):
                    lanes = [*range(at, at + 8), *range(_BYTES + at, _BYTES + at + 8)]
                    sides.append(T.Bind(T.Shuffle(two, lanes)))
            before = [T.Bind(s) for s in sums[first : first + 2]]
            products = []
            for rows, lanes in enumerate(([0, 4, 1, 5], [2, 6, 3, 7])):
                added = T.Shuffle(before, lanes)
                for side, block in zip(sides, blocks[rows::2], strict=True):
                    added = T.call_llvm_pure_intrin(
                        "int32x4", "llvm.aarch64.neon.smmla", added, block, side
                    )
                products.append(T.Bind(added))
            out += [T.Bind(T.Shuffle(products, lanes)) for lanes in ([0, 2, 4, 6], [1, 3, 5, 7])]
        return out

    return unit


def _long(blocks: Sequence[Expr], token: Activations, sums: Expr) -> Expr:
    """Plain NEON, 4-bit codes: products as 16-bit words, added up by multiply-accumulate.

    A word's sum is at most 8 * 15 * 127.
    """
    return sums + _rows_of(_add_pairs(_words(blocks, _fours(token))))


def _long_signed(blocks: Sequence[Expr], token: Activations, sums: Expr) -> Expr:
    """Plain NEON, int8 codes: a word holds the sum of two products, at most 2 * 127 * 127."""
    fours, pairs = _fours(token), None
    for i in range(0, len(blocks), 2):
        two = _add_pairs(_words(blocks[i : i + 2], fours[i : i + 2]))
        pairs = two if pairs is None else [T.Bind(a + b) for a, b in zip(pairs, two, strict=True)]
    assert pairs is not None
    return sums + _rows_of(pairs)


def _fours(token: Activations) -> list[Expr]:
    """Returns a token's activations, four for every row."""
    words = (T.reinterpret("int32", token(i, 4)) for i in range(0, UNIT, 4))
    return [T.reinterpret(f"int8x{4 * LANES}", spread(word)) for word in words]


def _words(blocks: Sequence[Expr], fours: Sequence[Expr]) -> Expr:
    """Returns the sums of blocks' products as 16-bit words, which must hold them."""
    words, dtype = None, f"int16x{4 * LANES}"
    for block, four in zip(blocks, fours, strict=True):
        product = T.cast(block, dtype) * T.cast(four, dtype)
        words = T.Bind(product if words is None else words + product)
    return words


def _add_pairs(words: Expr) -> list[Expr]:
    """Adds neighbours of 64 words: eight int32x4, each of two rows."""
    add = "llvm.aarch64.neon.saddlp"
    parts = (part(words, 8, i) for i in range(LANES // 2))
    return [T.Bind(T.call_llvm_pure_intrin("int32x4", add, words_of)) for words_of in parts]


def _rows_of(sums: Sequence[Expr]) -> Expr:
    """Adds neighbours of eight int32x4, each of two rows: int32x16."""
    add = "llvm.aarch64.neon.addp"
    pairs = zip(sums[::2], sums[1::2], strict=True)
    parts = [T.call_llvm_pure_intrin("int32x4", add, *pair) for pair in pairs]
    return T.Shuffle(parts, list(range(LANES)))


_Q4, _Q8 = _sdot(_halves), _sdot(as_they_are)
# A tile is unpacked before anything is multiplied, and its weights then come from memory. Fewer
# tokens are multiplied by codes that are unpacked in registers, and the fewest, where that is no
# faster, by compiled products: tests/bench/arm.md.
_LEAST = 16
_I8MM = Products(
    q4=MatrixProduct(_smmla(_Q4, packed_codes=True), lanes=_ROWS, tokens=8),
    q8=MatrixProduct(_smmla(_Q8, packed_codes=False), lanes=_ROWS, tokens=8),
    f16_tokens=6,
    queries=4,
    several=TileFunction(
        "minicpmv_matrix_products",
        inputs=8,
        least=_LEAST,
        few=FewFunction("minicpmv_few_matrix_products", least=3),
    ),
)
ARM = {
    "sme": replace(
        _I8MM,
        several=TileFunction(
            "minicpmv_outer_products",
            inputs=4,
            least=8,
            few=FewFunction("minicpmv_few_dot_products", least=4),
        ),
    ),
    "i8mm": _I8MM,
    "dotprod": Products(
        q4=MatrixProduct(_Q4, lanes=_ROWS, tokens=8),
        q8=MatrixProduct(_Q8, lanes=_ROWS, tokens=4),
        f16_tokens=6,
        queries=4,
        several=TileFunction(
            "minicpmv_dot_products",
            inputs=4,
            least=_LEAST,
            few=FewFunction("minicpmv_few_dot_products", least=2),
        ),
    ),
    "neon": Products(
        q4=MatrixProduct(
            each_token(partial(_halves, size=4 * LANES), _long), lanes=LANES, tokens=2
        ),
        q8=MatrixProduct(each_token(as_they_are, _long_signed), lanes=LANES, tokens=2),
        f16_tokens=6,
        queries=4,
    ),
}
