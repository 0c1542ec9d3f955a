"""Attention without a mask in 16-bit integers, for processors that multiply pairs of them.

The number of bits is chosen so that every sum of products fits into 32 bits: with 72 values per
head, queries and keys are rounded to 13 bits, weights to 15 and values to 12, including the sign.
The softmax and the sums of the runs are float32; weights are normalised by the sum of their rounded
values. The result differs from float32 by at most 1e-3 of its scale, a tenth of the error of the
int8 linears beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tvm.script.ir_builder import tirx as T

from convert.blocks.attention import Heads, keep, slots
from convert.blocks.head_rows import AHEAD, HeadRows, HeadTensors, magnitude, step_of
from convert.blocks.maths import exp2, nearest
from convert.blocks.products import Pairs
from convert.blocks.tir import (
    LANES,
    Expr,
    each_row_block,
    fold,
    kernel,
    local,
    local_rows,
    parts,
    span,
    spread,
    store,
)

_WORD = 2**15 - 1
_SUM = 2**31 - 1
_WEIGHT_CODES = 2**14 - 1  # largest
_VALUE_CODES = 2**11 - 1
_RUN = 64  # slots whose weighted values are summed in int32
assert _WEIGHT_CODES * _VALUE_CODES * _RUN <= _SUM
MAX_HEAD_DIM = 128


def word_attention(
    heads: int,
    head_dim: int,
    q: Heads,
    k: Heads,
    v: Heads,
    pairs: Pairs,
    most: int,
) -> Expr:
    """Makes the kernel (q, k, v) -> (queries, heads * head_dim), without a mask; float32.

    The numbers of queries and keys are those of the arguments' rows.

    Args:
        heads: their number.
        head_dim: an even width of at most 128.
        q: where a row of the first argument holds its heads.
        k: where a row of the second argument holds its heads.
        v: where a row of the third argument holds its heads.
        pairs: the processor's product.
        most: keys.
    """
    assert head_dim % 2 == 0
    assert head_dim <= MAX_HEAD_DIM
    with kernel("word_attention") as kern:
        tensors = HeadTensors(kern, heads, head_dim, (q, k, v))
        keys = tensors.keys
        size = _Size(
            head_dim=head_dim,
            keys=keys,
            tiles=T.Bind((keys + (LANES - 1)) // LANES),
            runs=T.Bind((keys + (_RUN - 1)) // _RUN),
            most=-(-most // _RUN) * _RUN,
            pairs=pairs,
        )
        with T.parallel(0, heads) as head:
            asked, key, value, results = tensors.of(head)
            staged = _StagedHead(size, key, value)

            def attend(first: Expr, count: int) -> None:
                staged.attend(asked, results, first, count)

            each_row_block(tensors.queries, pairs.queries, attend)
    return kern.function


@dataclass(frozen=True, kw_only=True)
class _Size:
    """The numbers that a kernel is made for."""

    head_dim: int
    keys: Expr
    tiles: Expr  # of keys
    runs: Expr  # of slots, which the keys fill up to the last run
    most: int  # slots at most, whole runs
    pairs: Pairs

    @property
    def width(self) -> int:
        """A head's columns, rounded up to whole vectors."""
        return -(-self.head_dim // LANES) * LANES

    @property
    def largest_code(self) -> int:
        """The largest code of queries and keys: a sum of head_dim products fits into int32."""
        return min(math.isqrt(_SUM // self.head_dim), _WORD)


class _StagedHead:
    """A head's keys and values as words, and the scratch of one block of queries."""

    def __init__(self, size: _Size, keys: HeadRows, values: HeadRows) -> None:
        """Rounds the keys and values."""
        self._size = size
        self._key_words = T.alloc_buffer((size.tiles, size.head_dim // 2, 2 * LANES), "int16")
        self._value_words = T.alloc_buffer((size.runs * (_RUN // 2), 2 * size.width), "int16")
        self._key_step = _stage_keys(self._key_words, keys, size)
        self._value_steps = local((size.width,))
        _stage_values(self._value_words, self._value_steps, values, size)
        block = size.pairs.queries
        self._queries = T.alloc_buffer((block, size.head_dim), "int16")
        # As long as for the most keys, so that strides are known.
        self._scores = T.alloc_buffer((block, size.most), "float32")
        self._weights = T.alloc_buffer((block, size.most), "int16")
        with T.grid(block, size.runs * (_RUN // LANES)) as (m, i):
            store(self._weights, T.broadcast(T.int16(0), LANES), m, span(i * LANES))

    def attend(self, queries: HeadRows, out: HeadRows, first: Expr, count: int) -> None:
        """Attends with `count` queries from row `first` on."""
        size = self._size
        largest = local_rows(count, T.float32(-1e30))
        sums = local_rows(count, T.float32(0))
        scale = math.log2(math.e) * size.head_dim**-0.5
        steps: list[Expr] = []  # of the scores, as powers of two
        for m in range(count):
            step = _stage_query(self._queries, m, queries, first + m, size)
            steps.append(T.Bind(step * self._key_step * T.float32(scale)))

        def score(first_tile: Expr, some: int) -> None:
            self._score([first_tile + i for i in range(some)], largest)

        each_row_block(size.tiles, size.pairs.tiles, score)
        for m in range(count):
            self._weigh(m, steps[m], largest[m], sums[m])
        factors = [T.Bind(T.float32(1) / _fold_row(row, lambda a, b: a + b)) for row in sums]
        for first_part, some, turns in _cut(size.width // LANES, size.pairs.tiles):
            for turn in range(turns):
                part = first_part + turn * some
                mixed = self._mix(count, part, some)
                self._write(out, first, mixed, factors, part)

    def _score(self, tiles: list[Expr], largest: list[Expr]) -> None:
        """Multiplies the block's queries with some tiles of keys; keeps each row's largest."""
        count, head_dim = len(largest), self._size.head_dim
        dots = local_rows(len(tiles) * count, T.int32(0))
        with T.serial(0, head_dim // 2) as d:
            words = [T.Bind(self._key_words[tile, d, span(0, 2 * LANES)]) for tile in tiles]
            pairs = [self._queries[m, span(2 * d, 2)] for m in range(count)]
            self._add_products(dots, words, pairs)
        for i, tile in enumerate(tiles):
            for m in range(count):
                dot = dots[i * count + m][span(0)]
                # Rows beyond the last repeat it, so the largest score needs no mask.
                score = T.Bind(T.cast(dot, "float32x16"))
                store(self._scores, score, m, span(tile * LANES))
                store(largest[m], T.max(largest[m][span(0)], score), span(0))

    def _weigh(self, m: int, step: Expr, largest: Expr, sums: Expr) -> None:
        """Turns a row of scores into codes of weights, and adds these up in `sums`."""
        top, end = _fold_row(largest, T.max), T.float32(math.log2(_WEIGHT_CODES))
        last, keys = self._size.tiles - 1, T.cast(self._size.keys, "int32")
        at_last = span(last * LANES)
        shown = keep(self._scores[m, at_last], slots(last) < spread(keys))
        store(self._scores, shown, m, at_last)
        with T.serial(0, self._size.tiles) as tile:
            at_tile = span(tile * LANES)
            # Never above `end`, however large scores are: a code must fit.
            power = (self._scores[m, at_tile] - spread(top)) * spread(step) + spread(end)
            power = T.max(power, spread(T.float32(-126)))
            code, word = nearest(exp2(power))
            store(self._weights, word, m, at_tile)
            store(sums, sums[span(0)] + code, span(0))

    def _mix(self, count: int, part: int, some: int) -> list[Expr]:
        """Sums weighted values: some vectors of columns, from vector `part` on, as codes."""
        mixed = local_rows(some * count, T.float32(0))
        with T.serial(0, self._size.runs) as run:
            dots = local_rows(some * count, T.int32(0))
            with T.serial(0, _RUN // 2) as i:
                slot = T.Bind(run * (_RUN // 2) + i)
                columns = [span(2 * (part + j) * LANES, 2 * LANES) for j in range(some)]
                words = [T.Bind(self._value_words[slot, at]) for at in columns]
                pairs = [self._weights[m, span(2 * slot, 2)] for m in range(count)]
                self._add_products(dots, words, pairs)
            for sum_, dot in zip(mixed, dots, strict=True):
                store(sum_, sum_[span(0)] + T.cast(dot[span(0)], "float32x16"), span(0))
        return mixed

    def _write(
        self, out: HeadRows, first: Expr, mixed: list[Expr], factors: list[Expr], part: int
    ) -> None:
        """Writes what `_mix` summed, as float32; of the last vector only columns that exist."""
        count = len(factors)
        for j in range(len(mixed) // count):
            at_part = (part + j) * LANES
            lanes = min(LANES, self._size.head_dim - at_part)
            for m in range(count):
                result, step = local((LANES,)), self._value_steps[span(at_part)]
                value = mixed[j * count + m][span(0)] * step * spread(factors[m])
                store(result, value, span(0))
                if lanes == LANES:
                    store(out.rows, result[span(0)], first + m, span(out.first + at_part))
                else:
                    with T.serial(0, lanes) as i:
                        store(out.rows, result[i], first + m, out.first + at_part + i)

    def _add_products(self, dots: list[Expr], words: list[Expr], pairs: list[Expr]) -> None:
        """Adds products of words with one pair of each row.

        All rows' sums for the first words come first in `dots`.
        """
        for m, pair in enumerate(pairs):
            both = T.Bind(T.reinterpret("int32", pair))
            for i, some in enumerate(words):
                row = dots[i * len(pairs) + m]
                store(row, self._size.pairs.product(some, both, row[span(0)]), span(0))


def _fold_row(row: Expr, combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """Combines the lanes of a row, which stays as it is."""
    scratch = local((LANES,))
    store(scratch, row[span(0)], span(0))
    return fold(scratch, combine, LANES)


def _cut(count: int, some: int) -> Iterator[tuple[int, int, int]]:
    """Cuts a count into turns of `some`, then of one: yields (first, how many each, turns)."""
    turns = count // some
    if turns:
        yield 0, some, turns
    if count % some:
        yield turns * some, 1, count % some


def _stage_keys(words: Expr, keys: HeadRows, size: _Size) -> Expr:
    """Rounds a head's keys; returns their step. Rows beyond the last repeat it."""
    head_dim = size.head_dim
    largest = local((LANES,))
    store(largest, spread(T.float32(0)), span(0))
    with T.serial(0, size.keys) as row:
        keys.prefetch(row + AHEAD)
        keys.add_magnitudes(largest, row)
    step = step_of(fold(largest, T.max, LANES), size.largest_code)
    inverse = T.Bind(T.float32(1) / step)
    codes = T.alloc_buffer((LANES, head_dim), "int16")
    with T.serial(0, size.tiles) as tile:
        with T.serial(0, LANES) as lane:
            row = T.min(tile * LANES + lane, size.keys - 1)
            keys.round(codes, lane, row, inverse)
        with T.grid(head_dim // 2, LANES) as (d, lane):
            pair = T.reinterpret("int32", codes[lane, span(2 * d, 2)])
            store(words, T.reinterpret("int16x2", pair), tile, d, span(2 * lane, 2))
    return step


def _stage_values(words: Expr, steps: Expr, values: HeadRows, size: _Size) -> None:
    """Rounds a head's values, each column with its own step; missing rows become zeros."""
    rows, first, width = values.rows, values.first, size.width
    inverse = local((width,))
    for at in range(0, width, LANES):
        store(steps, spread(T.float32(0)), span(at))
    with T.serial(0, size.keys) as row:
        values.prefetch(row + AHEAD)
        for at, lanes, value in values.parts(row):
            raised = T.max(steps[span(at, lanes)], magnitude(value, lanes))
            store(steps, raised, span(at, lanes))
    with T.serial(0, width) as d:
        step = step_of(steps[d], _VALUE_CODES)
        store(steps, step, d)
        store(inverse, T.float32(1) / step, d)
    with T.grid(size.runs * (_RUN // 2), 2 * width // LANES) as (slot, i):
        store(words, T.broadcast(T.int16(0), LANES), slot, span(i * LANES))
    with T.serial(0, (size.keys + 1) // 2) as slot:
        for at, lanes in parts(size.head_dim):
            pair = []
            for half in range(2):
                row = T.min(2 * slot + half, size.keys - 1)  # a missing last row has weight 0
                value = rows[row, span(first + at, lanes)] * inverse[span(at, lanes)]
                pair.append(T.Bind(nearest(value, lanes)[1]))
            order = [half * lanes + lane for lane in range(lanes) for half in range(2)]
            store(words, T.Shuffle(pair, order), slot, span(2 * at, 2 * lanes))


def _stage_query(codes: Expr, m: int, queries: HeadRows, row: Expr, size: _Size) -> Expr:
    """Rounds a query into row m of `codes`; returns its step."""
    step = queries.step(row, size.largest_code)
    queries.round(codes, m, row, T.Bind(T.float32(1) / step))
    return step
