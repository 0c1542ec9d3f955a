"""Products of several tokens by functions of the engine, from the same tiles of weights.

A call multiplies a tile of weights with all tokens; what the weights need first is done once for
it. Most functions take tokens packed as weights are: tiles of 16, whose blocks hold some inputs of
each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from tvm.script.ir_builder import tirx as T

from convert.blocks.linear import CodesProduct, Linear
from convert.blocks.products import MatrixProduct, TileFunction
from convert.blocks.tir import Expr, Kernel, call, kernel, local, span, spread, store
from quantize.layout import TILE_ROWS, tiles

_BLOCK = 4 * TILE_ROWS  # bytes
_CODES = 16  # of a token that are loaded at a time
_TASKS = 12  # that pack a tile of tokens: for all threads, also where there is one tile
_WHOLE = 0x4B400000  # what sums of few tokens begin with: runtime/engine/dot_products.h


def pack_tokens(groups: int, size: int, by: TileFunction) -> Expr:
    """Makes the kernel (codes (L, G, size), scale (L, G), [offset (L, G)]) -> `packed_shapes`.

    Each group of tokens is (size / n, 16, n) with n inputs side by side. The last tile's missing
    tokens repeat the last one. Where a function takes few tokens, offsets are given, too, and of so
    few tokens it is written what their sums begin with. Of fewer tokens than `by` takes nothing is.
    """
    run = -(-groups // _TASKS)
    runs = -(-groups // run)
    with kernel(f"pack_{groups * size}") as k:
        length = k.length("rows")
        codes = k.tensor("codes", (length, groups, size), "int8")
        scale = k.tensor("scale", (length, groups))
        offset = None if by.few is None else k.tensor("offset", (length, groups), "int32")
        packed = _Packed(length, size, by)
        packed.add(k, groups)
        tasks = _token_tiles(length) * runs
        with T.If(length >= by.fewest), T.Then(), T.parallel(0, tasks) as task:
            tile, first = T.Bind(task // runs), T.Bind(task % runs * run)
            rows = [T.Bind(T.min(tile * TILE_ROWS + m, length - 1)) for m in range(TILE_ROWS)]
            with T.serial(0, T.min(groups - first, run)) as i:
                group = T.Bind(first + i)
                for m, row in enumerate(rows):
                    store(packed.scales, scale[row, group], tile, group, T.int64(m))
                if offset is not None:
                    with T.If(length < by.least), T.Then():
                        packed.start(group, [offset[row, group] for row in rows])
                with T.serial(0, size // _CODES) as part:
                    columns = span(part * _CODES, _CODES)
                    blocks = packed_blocks([codes[row, group, columns] for row in rows], by)
                    for j, block in enumerate(blocks):
                        at = part * len(blocks) + j
                        store(packed.tokens, block, tile, group, at, span(0, _BLOCK))
    return k.function


def packed_blocks(rows: Sequence[Expr], by: TileFunction) -> list[Expr]:
    """Arranges 16 codes of each of 16 rows: blocks of 64 bytes that hold some inputs of each."""
    per_load, in_block = _CODES // by.inputs, _BLOCK // by.inputs
    words = [_words(T.Bind(row), by) for row in rows]
    shuffled = (
        T.Shuffle(words[m : m + in_block], [per_load * j + i for j in range(in_block)])
        for i in range(per_load)
        for m in range(0, TILE_ROWS, in_block)
    )
    return [T.reinterpret(f"int8x{_BLOCK}", block) for block in shuffled]


def joined_blocks(blocks: Sequence[Expr], by: TileFunction) -> list[Expr]:
    """Arranges blocks of 4 inputs of 16 rows: as many inputs together as a function takes."""
    some = by.inputs // 4
    if some == 1:
        return list(blocks)
    joined = []
    for first in range(0, len(blocks), some):
        words = [T.Bind(T.reinterpret("int32x16", b)) for b in blocks[first : first + some]]
        for j in range(some):
            rows = range(j * TILE_ROWS // some, (j + 1) * TILE_ROWS // some)
            lanes = [TILE_ROWS * w + row for row in rows for w in range(some)]
            joined.append(T.reinterpret(f"int8x{_BLOCK}", T.Shuffle(words, lanes)))
    return joined


def packed_shapes(
    length: Expr, groups: int, size: int, by: TileFunction
) -> list[tuple[tuple[Expr, ...], str]]:
    """Returns the shapes and types of packed tokens.

    tokens (ceil(L/16), G, size / 4, 64) int8; scales (ceil(L/16), G, 16) float32; where a function
    takes few tokens, of the only tile what their sums begin with: starts (G, 16 * copies) int32.
    """
    of_tile = (_token_tiles(length), groups)
    shapes: list[tuple[tuple[Expr, ...], str]] = [
        ((*of_tile, size // 4, _BLOCK), "int8"),
        ((*of_tile, TILE_ROWS), "float32"),
    ]
    if by.few is not None:
        shapes.append(((groups, TILE_ROWS * _copies(by)), "int32"))
    return shapes


def _token_tiles(length: Expr) -> Expr:
    """Returns how many tiles hold so many tokens."""
    return (length + TILE_ROWS - 1) // TILE_ROWS


def linear_of_several(
    c: Linear,
    size: int,
    fewest: MatrixProduct,
    blocks: int,
    dtype: str,
    zero_point: int,
    by: TileFunction,
) -> Expr:
    """Makes the kernel of `linear.linear_codes` by a function of the engine.

    Args:
        c: the product.
        size: inputs of a group.
        fewest: how fewer tokens than `by` takes are multiplied.
        blocks: that hold a group's codes.
        dtype: of the codes; unsigned ones are of 4 bits.
        zero_point: of codes of 4 bits.
        by: how several tokens are multiplied; if it packs, `pack_tokens`' results come before the
            weights.
    """
    bits = 8 * blocks * 4 // size
    if by.few is not None:  # no loops for numbers of tokens that do not come
        fewest = replace(fewest, tokens=min(fewest.tokens, by.fewest - 1))
    with kernel(f"linear_q{bits}_{c.rows}x{c.columns}") as k:
        length = k.length("rows")
        packed = _Packed(length, size, by) if by.packs else None
        add = None if packed is None else packed.add
        product = CodesProduct(k, c, size, fewest, blocks, dtype, length, add)

        def stored(tile: Expr) -> Expr:
            return product.q_weight[tile, 0, 0, 0]

        def whole(tile: Expr) -> Expr:
            if bits == 4:
                return _unpacked(product, tile, zero_point, by)[0, 0, 0]
            return _arranged(product, tile, by)[0, 0, 0] if by.inputs > 4 else stored(tile)

        with T.If(length < by.fewest):
            with T.Then():
                product.multiply_all()
            with T.Else():
                if by.few is None or packed is None:
                    _multiply_tiles(product, packed, by.name, whole, T.int64(size // 4))
                else:
                    with T.If(length < by.least):
                        with T.Then():
                            starts = packed.starts[0, 0]
                            _multiply_tiles(product, packed, by.few.name, stored, starts)
                        with T.Else():
                            _multiply_tiles(product, packed, by.name, whole, T.int64(size // 4))
    return k.function


class _Packed:
    """The parameters that hold packed tokens."""

    def __init__(self, length: Expr, size: int, by: TileFunction) -> None:
        self._length, self._size, self._by = length, size, by
        self.tokens: Expr = None
        self.scales: Expr = None
        self.starts: Expr = None

    def add(self, k: Kernel, groups: int) -> None:
        """Adds them to a kernel."""
        shapes = packed_shapes(self._length, groups, self._size, self._by)
        names = ("tokens", "scales", "starts")
        made = [k.tensor(name, *one) for name, one in zip(names, shapes, strict=False)]
        self.tokens, self.scales, self.starts = (*made, None)[:3]

    def start(self, group: Expr, offsets: Sequence[Expr]) -> None:
        """Writes what the sums of a tile's tokens begin with."""
        copies = _copies(self._by)
        for m, offset in enumerate(offsets):
            columns = span(T.int64(m * copies), copies)
            store(self.starts, spread(offset + T.int32(_WHOLE), copies), group, columns)


def _copies(by: TileFunction) -> int:
    """Returns how many rows of a token a register of sums holds: so often its start is stored."""
    return 16 // by.inputs


def _multiply_tiles(
    product: CodesProduct,
    packed: _Packed | None,
    name: str,
    weights: Callable[[Expr], Expr],
    last: Expr,
) -> None:
    """Calls a function for every tile, parallel, with these weights and this last argument."""
    c = product.c
    with T.parallel(0, tiles(c.rows)) as tile:
        tokens = (
            (product.codes[0, 0, 0], product.scale[0, 0])
            if packed is None
            else (packed.tokens[0, 0, 0, 0], packed.scales[0, 0, 0])
        )
        call(
            name,
            weights(tile),
            product.q_scale[tile, 0, 0],
            *tokens,
            product.out[0, tile * TILE_ROWS],
            T.int64(4 * c.rows),
            product.length,
            T.min(c.rows - tile * TILE_ROWS, TILE_ROWS),
            T.int64(product.groups),
            last,
        )
        if c.bias or c.gelu or c.residual is not None:
            _finish(product, tile)


def _words(codes: Expr, by: TileFunction) -> Expr:
    """Views int8 codes as words of the inputs that lie side by side."""
    words = str(codes.ty.dtype).removeprefix("int8x")
    return T.reinterpret(f"int{8 * by.inputs}x{int(words) // by.inputs}", codes)


def _unpacked(product: CodesProduct, tile: Expr, zero_point: int, by: TileFunction) -> Expr:
    """Unpacks a tile of 4-bit codes (G, blocks, 64) to int8 (G, 2 * blocks, 64)."""
    stored = product.q_weight
    blocks = int(stored.shape[2])
    unpacked = local((product.groups, 2 * blocks, _BLOCK), "int8")
    with T.serial(0, product.groups) as group:
        packed = [T.Bind(stored[tile, group, i, span(0, _BLOCK)]) for i in range(blocks)]
        low = [T.bitwise_and(codes, T.broadcast(T.uint8(15), _BLOCK)) for codes in packed]
        high = [T.shift_right(codes, T.broadcast(T.uint8(4), _BLOCK)) for codes in packed]
        signed = [
            T.Bind(T.reinterpret(f"int8x{_BLOCK}", half) - T.broadcast(T.int8(zero_point), _BLOCK))
            for half in (*low, *high)
        ]
        _store_blocks(unpacked, signed, group, T.int64(0), by)
    return unpacked


def _arranged(product: CodesProduct, tile: Expr, by: TileFunction) -> Expr:
    """Puts a tile of int8 codes (G, blocks, 64) into the order that a function takes."""
    stored = product.q_weight
    blocks, some = int(stored.shape[2]), by.inputs // 4
    arranged = local((product.groups, blocks, _BLOCK), "int8")
    with T.serial(0, product.groups) as group, T.serial(0, blocks // some) as i:
        columns = span(0, _BLOCK)
        codes = [T.Bind(stored[tile, group, i * some + j, columns]) for j in range(some)]
        _store_blocks(arranged, codes, group, i * some, by)
    return arranged


def _store_blocks(
    to: Expr, blocks: Sequence[Expr], group: Expr, at: Expr, by: TileFunction
) -> None:
    """Stores blocks of 4 inputs from block `at` of a group on, as a function takes them."""
    for j, block in enumerate(joined_blocks(blocks, by)):
        store(to, block, group, at + j, span(0, _BLOCK))


def _finish(product: CodesProduct, tile: Expr) -> None:
    """Applies the epilogue to a tile's sums, which are in `out`."""
    with T.serial(0, product.length) as row:

        def written(_: int, at: Expr, lanes: int) -> Expr:
            return product.out[row, span(tile * TILE_ROWS + at, lanes)]

        product.finish(written, row, 1, tile)
