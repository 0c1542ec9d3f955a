"""Attention without a mask in int8, by the functions of the engine that multiply tiles of codes.

A tile is 16 queries. Its codes are multiplied with all keys, which are the tokens there, and then
the weights that the softmax gives with the columns of values as tokens.

Queries and keys have a step each; keys are rounded after their mean is subtracted, which changes no
weight. Weights have 14 bits, in two bytes that are multiplied one after the other; values have 8,
and a step for each column of at most 256 keys. Softmax and float sums are float32; weights are
normalised by the sum of their rounded values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tvm.script.ir_builder import tirx as T

from convert.blocks.attention import Heads
from convert.blocks.head_rows import AHEAD, HeadRows, HeadTensors, magnitude, step_of
from convert.blocks.maths import nearest, rough_exp2
from convert.blocks.outer_products import joined_blocks, packed_blocks
from convert.blocks.products import UNIT, TileFunction
from convert.blocks.tir import LANES, Expr, call, fold, kernel, local, parts, span, spread, store
from quantize.activations import MAX_INT8

_BLOCK = 4 * LANES  # bytes
_QUADS = UNIT // 4  # in a unit
_UNITS = 8  # that a group of keys has at most: the functions' sums stay below 2^22
_LOW_BITS = 7  # of a weight's low byte; both bytes are signed, and not negative
_WEIGHT_CODES = 2 ** (2 * _LOW_BITS) - 4  # largest, less what `rough_exp2` may add
_LEAST_POWER = -24  # of two: a weight far below half a code
_HIGH, _LOW = 0, 1


def byte_attention(
    heads: int, head_dim: int, q: Heads, k: Heads, v: Heads, by: TileFunction, most: int
) -> Expr:
    """Makes the kernel (q, k, v) -> (queries, heads * head_dim), without a mask; float32.

    The numbers of queries and keys are those of the arguments' rows.

    Args:
        heads: their number.
        head_dim: a width of at most 256.
        q: where a row of the first argument holds its heads.
        k: where a row of the second argument holds its heads.
        v: where a row of the third argument holds its heads.
        by: the function that multiplies.
        most: keys.
    """
    with kernel("byte_attention") as kern:
        tensors = HeadTensors(kern, heads, head_dim, (q, k, v))
        queries, size = tensors.queries, _Size(head_dim, tensors.keys, most)
        with T.parallel(0, heads) as head:
            asked, key, value, results = tensors.of(head)
            staged = _StagedHead(size, by, key, value)
            with T.serial(0, (queries + (LANES - 1)) // LANES) as tile:
                staged.attend(asked, results, tile * LANES, queries)
    return kern.function


class _Size:
    """The numbers that a kernel is made for."""

    def __init__(self, head_dim: int, keys: Expr, most: int) -> None:
        assert head_dim <= UNIT * _UNITS
        self.head_dim, self.keys, self.most = head_dim, keys, most
        units = T.Bind((keys + (UNIT - 1)) // UNIT)
        self.groups = T.Bind((units + (_UNITS - 1)) // _UNITS)
        self.quads = T.Bind((units + self.groups - 1) // self.groups * _QUADS)  # of a group
        self.slots = T.Bind(self.groups * self.quads * 4)  # for the keys
        most_units = -(-most // UNIT)
        self.most_groups = -(-most_units // _UNITS)
        self.most_slots = (most_units + self.most_groups - 1) * UNIT

    @property
    def inputs(self) -> int:
        """A head's columns, rounded up to whole units."""
        return -(-self.head_dim // UNIT) * UNIT

    @property
    def columns(self) -> int:
        """A head's columns, rounded up to whole vectors."""
        return -(-self.head_dim // LANES) * LANES


@dataclass(frozen=True)
class _Tokens:
    """What a function multiplies a tile with: codes, and for each group of them a scale."""

    codes: Expr  # (…, 64) if it packs, else (tokens, …)
    scales: Expr  # one after the other

    def arguments(self) -> tuple[Expr, Expr]:
        """Returns where they begin."""
        return self.codes[0, 0], self.scales[0]


class _StagedHead:
    """A head's keys and values as tokens, and the scratch of one tile of queries."""

    def __init__(self, size: _Size, by: TileFunction, keys: HeadRows, values: HeadRows) -> None:
        """Rounds the keys and values."""
        self._size, self._by = size, by
        self._keys = _staged_keys(size, by, keys)
        self._values = _staged_values(size, by, values)
        self._rows = _zeros(LANES, size.inputs)  # codes of a tile's queries
        self._queries = T.alloc_buffer((size.inputs // 4, _BLOCK), "int8")
        self._steps = T.alloc_buffer((2, size.most_groups * LANES), "float16")
        factors = {_HIGH: 2.0**_LOW_BITS, _LOW: 1.0}
        for which, factor in factors.items():
            with T.serial(0, size.most_groups) as group:
                store(self._steps, spread(T.float16(factor)), which, span(group * LANES))
        self._scores = T.alloc_buffer((size.most + by.inputs, LANES), "float32")
        with T.serial(0, by.inputs) as i:  # no key's, but they are read
            store(self._scores, spread(T.float32(0)), size.keys + i, span(0))
        weights = (2, size.most_slots // 4, _BLOCK)
        self._weights = T.alloc_buffer(weights, "int8")
        with T.grid(2, size.slots // 4) as (which, quad):
            store(self._weights, T.broadcast(T.int8(0), _BLOCK), which, quad, span(0, _BLOCK))
        self._mixed = T.alloc_buffer((2, size.columns, LANES), "float32")

    def attend(self, queries: HeadRows, out: HeadRows, first: Expr, count: Expr) -> None:
        """Attends with 16 queries from row `first` on, or the rest of `count`."""
        size = self._size
        factors = self._stage(queries, first, count)
        self._multiply(
            self._queries[0, 0], _LOW, self._keys, self._scores[0, 0], size.keys, (1, size.inputs)
        )
        sums = self._weigh(factors)
        inverse = T.Bind(spread(T.float32(1)) / T.cast(sums[span(0)], "float32x16"))
        for which in (_HIGH, _LOW):
            self._multiply(
                self._weights[which, 0, 0], which, self._values, self._mixed[which, 0, 0],
                T.int64(size.head_dim), (size.groups, size.quads * 4),
            )  # fmt: skip
        mixed = self._mixed
        with T.serial(0, size.head_dim) as d:
            both = mixed[_HIGH, d, span(0)] + mixed[_LOW, d, span(0)]
            store(mixed, both * inverse, _HIGH, d, span(0))
        with T.grid(T.min(count - first, LANES), size.head_dim) as (m, d):
            store(out.rows, mixed[_HIGH, d, m], first + m, out.first + d)

    def _multiply(
        self,
        tile: Expr,
        steps: int,
        tokens: _Tokens,
        out: Expr,
        length: Expr,
        groups: tuple[Expr, Expr],
    ) -> None:
        """Multiplies a tile with so many tokens, each of so many groups with so many inputs."""
        count, inputs = groups
        call(
            self._by.name,
            tile,
            self._steps[steps, 0],
            *tokens.arguments(),
            out,
            T.int64(4 * LANES),
            length,
            T.int64(LANES),
            count,
            inputs // 4,
        )

    def _stage(self, queries: HeadRows, first: Expr, count: Expr) -> Expr:
        """Rounds a tile's queries; returns what scores are multiplied by, as powers of two."""
        scale = math.log2(math.e) * self._size.head_dim**-0.5
        factors = local((LANES,))
        with T.serial(0, LANES) as m:
            row = T.Bind(T.min(first + m, count - 1))
            step = queries.step(row, MAX_INT8)
            queries.round(self._rows, m, row, T.Bind(T.float32(1) / step))
            store(factors, step * T.float32(scale), m)
        _store_packed(self._queries, T.int64(0), self._rows, self._size, self._by)
        return T.Bind(factors[span(0)])

    def _weigh(self, factors: Expr) -> Expr:
        """Turns scores into codes of weights; returns their sums."""
        keys, step = self._size.keys, self._by.inputs
        largest, sums = local((LANES,)), local((LANES,), "int32")
        store(largest, self._scores[0, span(0)], span(0))
        store(sums, spread(T.int32(0)), span(0))
        with T.serial(0, keys) as key:
            store(largest, T.max(largest[span(0)], self._scores[key, span(0)]), span(0))
        top, whole = T.Bind(largest[span(0)]), T.Bind(keys // step)
        with T.serial(0, whole) as i:
            self._weigh_keys(i, top, factors, sums)
        with T.If(whole * step < keys), T.Then():
            self._weigh_keys(whole, top, factors, sums, cut=True)
        return sums

    def _weigh_keys(
        self, index: Expr, top: Expr, factors: Expr, sums: Expr, *, cut: bool = False
    ) -> None:
        """Weighs the keys whose codes lie side by side; if `cut`, some of them are missing."""
        step = self._by.inputs
        halves: tuple[list[Expr], list[Expr]] = ([], [])
        for key in (index * step + j for j in range(step)):
            # Never above 0, however large scores are: a code must fit.
            power = (self._scores[key, span(0)] - top) * factors
            power = T.max(power, spread(T.float32(_LEAST_POWER)))
            word = nearest(rough_exp2(power, _WEIGHT_CODES))[1]
            if cut:
                word = word * spread(T.Select(key < self._size.keys, T.int16(1), T.int16(0)))
            store(sums, sums[span(0)] + T.cast(word, "int32x16"), span(0))
            high = T.shift_right(word, spread(T.int16(_LOW_BITS)))
            low = T.bitwise_and(word, spread(T.int16(2**_LOW_BITS - 1)))
            for half, part in zip(halves, (high, low), strict=True):
                half.append(T.Bind(T.cast(part, "int8x16")))
        for which, codes in zip((_HIGH, _LOW), halves, strict=True):
            for i, block in enumerate(_interleaved(codes, self._by)):
                store(self._weights, block, which, index * (step // 4) + i, span(0, _BLOCK))


def _staged_keys(size: _Size, by: TileFunction, keys: HeadRows) -> _Tokens:
    """Rounds a head's keys as differences from their mean, each with its own step."""
    mean = local((size.columns,))
    for at in range(0, size.columns, LANES):
        store(mean, spread(T.float32(0)), span(at))
    with T.serial(0, size.keys) as row:
        keys.prefetch(row + AHEAD)
        for at, lanes, value in keys.parts(row):
            store(mean, mean[span(at, lanes)] + value, span(at, lanes))
    share = T.Bind(T.float32(1) / T.cast(size.keys, "float32"))
    for at in range(0, size.columns, LANES):
        store(mean, mean[span(at)] * spread(share), span(at))
    tiles = -(-size.most // LANES)
    scales = T.alloc_buffer((tiles * LANES,), "float32")
    if not by.packs:
        codes = T.alloc_buffer((size.most, size.inputs), "int8")
        with T.serial(0, size.keys) as row:
            store(scales, _round_key(size, codes, row, keys, row, mean), row)
            for at, lanes in parts(size.inputs - size.head_dim):
                store(codes, _no_codes(lanes), row, span(size.head_dim + at, lanes))
        return _Tokens(codes, scales)
    in_tile = size.inputs // 4
    codes, rows = T.alloc_buffer((tiles * in_tile, _BLOCK), "int8"), _zeros(LANES, size.inputs)
    with T.serial(0, (size.keys + (LANES - 1)) // LANES) as tile:
        with T.serial(0, LANES) as lane:
            at = T.Bind(tile * LANES + lane)
            row = T.Bind(T.min(at, size.keys - 1))
            store(scales, _round_key(size, rows, lane, keys, row, mean), at)
        _store_packed(codes, tile * in_tile, rows, size, by)
    return _Tokens(codes, scales)


def _round_key(size: _Size, codes: Expr, to: Expr, keys: HeadRows, row: Expr, mean: Expr) -> Expr:
    """Rounds a key's difference from the mean into row `to` of codes; returns its step."""
    largest, apart = local((LANES,)), local((1, size.columns))
    store(largest, spread(T.float32(0)), span(0))
    keys.prefetch(row + AHEAD)
    for at, lanes, value in keys.parts(row):
        difference = T.Bind(value - mean[span(at, lanes)])
        store(apart, difference, 0, span(at, lanes))
        raised = T.max(largest[span(0, lanes)], magnitude(difference, lanes))
        store(largest, raised, span(0, lanes))
    step = step_of(fold(largest, T.max, LANES), MAX_INT8)
    inverse = T.Bind(T.float32(1) / step)
    HeadRows(apart, T.int64(0), size.head_dim).round(codes, to, T.int64(0), inverse)
    return step


def _staged_values(size: _Size, by: TileFunction, values: HeadRows) -> _Tokens:
    """Rounds a head's columns of values, each with its own step for each group of keys."""
    tiles = size.columns // LANES
    most = size.most_slots // 4 * tiles if by.packs else size.most_slots // 4 * LANES * tiles
    staged = _Tokens(
        T.alloc_buffer((most, _BLOCK if by.packs else 4), "int8"),
        T.alloc_buffer((tiles * size.most_groups * LANES,), "float32"),
    )
    steps, inverse = local((size.columns,)), local((size.columns,))
    with T.serial(0, size.groups) as group:
        first = T.Bind(group * size.quads * 4)
        end = T.Bind(T.min(first + size.quads * 4, size.keys))
        for at in range(0, size.columns, LANES):
            store(steps, spread(T.float32(0)), span(at))
        with T.serial(0, end - first) as i:
            values.prefetch(first + i + AHEAD)
            for at, lanes, value in values.parts(first + i):
                raised = T.max(steps[span(at, lanes)], magnitude(value, lanes))
                store(steps, raised, span(at, lanes))
        with T.serial(0, size.columns) as d:
            step = step_of(steps[d], MAX_INT8)
            store(inverse, T.float32(1) / step, d)
            tile, lane = d // LANES, d % LANES
            at = (
                (tile * size.groups + group) * LANES + lane if by.packs else d * size.groups + group
            )
            store(staged.scales, step, at)
        with T.serial(0, (end - first + by.inputs - 1) // by.inputs) as i:
            key = T.Bind(first + i * by.inputs)
            rows = [T.Bind(T.min(key + j, size.keys - 1)) for j in range(by.inputs)]
            for tile in range(tiles):
                codes = [_round_values(values, row, tile * LANES, inverse) for row in rows]
                for j, block in enumerate(_interleaved(codes, by)):
                    _store_values(staged, size, by, tile, key // 4 + j, block)
    return staged


def _round_values(values: HeadRows, row: Expr, first: int, inverse: Expr) -> Expr:
    """Rounds 16 columns of a row from `first` on, int8x16; missing ones are zeros."""
    near = local((LANES,))
    left = min(values.head_dim - first, LANES)
    if left < LANES:
        store(near, spread(T.float32(0)), span(0))
    for at, lanes in parts(left):
        store(near, values.rows[row, span(values.first + first + at, lanes)], span(at, lanes))
    code = nearest(near[span(0)] * inverse[span(first)])[1]
    return T.Bind(T.cast(code, "int8x16"))


def _store_values(
    to: _Tokens, size: _Size, by: TileFunction, tile: int, quad: Expr, block: Expr
) -> None:
    """Stores a block of some keys' codes for 16 columns, which are the tokens."""
    in_row = size.slots // 4
    if by.packs:
        store(to.codes, block, tile * in_row + quad, span(0, _BLOCK))
        return
    words = T.Bind(T.reinterpret(f"int32x{LANES}", block))
    for lane in range(LANES):
        four = T.reinterpret("int8x4", T.Shuffle([words], [lane]))
        store(to.codes, four, (tile * LANES + lane) * in_row + quad, span(0, 4))


def _interleaved(codes: Sequence[Expr], by: TileFunction) -> list[Expr]:
    """Puts as many vectors of 16 codes side by side as `by` takes inputs together, in blocks."""
    order = [LANES * j + lane for lane in range(LANES) for j in range(4)]
    fours = [T.Bind(T.Shuffle(codes[i : i + 4], order)) for i in range(0, len(codes), 4)]
    return joined_blocks(fours, by)


def _store_packed(to: Expr, first: Expr, rows: Expr, size: _Size, by: TileFunction) -> None:
    """Stores 16 rows of codes as blocks from `first` on."""
    for part in range(size.inputs // LANES):
        vectors = [rows[m, span(part * LANES)] for m in range(LANES)]
        for i, block in enumerate(packed_blocks(vectors, by)):
            store(to, block, first + part * (_BLOCK // LANES) + i, span(0, _BLOCK))


def _zeros(rows: int, columns: int) -> Expr:
    """Allocates codes that are all 0."""
    made = T.alloc_buffer((rows, columns), "int8")
    with T.grid(rows, columns // LANES) as (row, i):
        store(made, _no_codes(LANES), row, span(i * LANES))
    return made


def _no_codes(lanes: int) -> Expr:
    return spread(T.int8(0), lanes)
