"""Attention of all tokens with all in 16-bit words, for processors that multiply pairs of them.

All sums of products fit into 32 bits: so queries and keys of 72 values are rounded to 13 bits,
weights to 15 and values to 12, sign included. Softmax and what is added up between are float32;
weights are normalised by the sum of what they were rounded to. Against float32 the result is off by
1e-3 of its scale at most, a tenth of what the int8 linears beside it lose.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from tvm.script.ir_builder import tirx as T

from convert.blocks.attention import Heads, attention, keep, slots
from convert.blocks.maths import exp2, nearest
from convert.blocks.products import Pairs, Products
from convert.blocks.tir import (
    LANES,
    Expr,
    each_row_block,
    fold,
    kernel,
    local,
    local_rows,
    parts,
    prefetch,
    span,
    spread,
    store,
)

_WORD = 2**15 - 1
_SUM = 2**31 - 1
_WEIGHT_CODES = 2**14 - 1  # largest
_VALUE_CODES = 2**11 - 1
_RUN = 64  # slots whose weighted values are added as whole numbers
assert _WEIGHT_CODES * _VALUE_CODES * _RUN <= _SUM
_MAX_HEAD_DIM = 128
_AHEAD = 8  # rows between those that are read and those that are asked for


def all_attention(
    by: Products, heads: int, head_dim: int, queries: int, keys: int, q: Heads, k: Heads, v: Heads
) -> Expr:
    """Makes the faster of the kernels for a processor; see `word_attention` and `attention`."""
    if by.pairs is None or head_dim % 2 or head_dim > _MAX_HEAD_DIM:
        return attention(heads, head_dim, queries, keys, q, k, v, block=by.queries)
    return word_attention(heads, head_dim, queries, keys, q, k, v, by.pairs)


def word_attention(
    heads: int,
    head_dim: int,
    queries: int,
    keys: int,
    q: Heads,
    k: Heads,
    v: Heads,
    pairs: Pairs,
) -> Expr:
    """Makes the kernel (q, k, v) -> (queries, heads * head_dim), without a mask; float32.

    Args:
        heads: their number.
        head_dim: an even width of at most 128.
        queries: their number.
        keys: their number.
        q: where a row of the first argument holds its heads.
        k: the same of the second.
        v: and of the third.
        pairs: the processor's product.
    """
    assert head_dim % 2 == 0
    assert head_dim <= _MAX_HEAD_DIM
    codes = min(math.isqrt(_SUM // head_dim), _WORD)  # largest of queries and keys
    slots_, block = -(-keys // _RUN) * _RUN, pairs.queries
    tiles, width = -(-keys // LANES), -(-head_dim // LANES) * LANES
    with kernel("word_attention") as kern:
        q_rows = kern.tensor("q", (queries, q.columns))
        k_rows, v_rows = kern.tensor("k", (keys, k.columns)), kern.tensor("v", (keys, v.columns))
        out = kern.tensor("out", (queries, heads * head_dim))
        with T.parallel(0, heads) as head:
            at = T.Bind(head * head_dim)
            key_words = T.alloc_buffer((tiles, head_dim // 2, 2 * LANES), "int16")
            value_words = T.alloc_buffer((slots_ // 2, 2 * width), "int16")
            key_step = _stage_keys(key_words, k_rows, k.first + at, keys, head_dim, codes)
            value_steps = local((width,))
            _stage_values(value_words, value_steps, v_rows, v.first + at, keys, head_dim)
            asked = T.alloc_buffer((block, head_dim), "int16")
            scores = T.alloc_buffer((block, tiles * LANES), "float32")
            weights = T.alloc_buffer((block, slots_), "int16")
            with T.grid(block, slots_ // LANES) as (m, i):
                store(weights, T.broadcast(T.int16(0), LANES), m, span(i * LANES))

            def mask(scores: Expr, tile: Expr) -> Expr:
                if keys % LANES == 0:
                    return scores
                return keep(scores, slots(tile) < spread(T.int32(keys)))

            def attend(first: Expr, count: int) -> None:
                steps: list[Expr] = []
                largest = local_rows(count, T.float32(-1e30))
                sums = local_rows(count, T.float32(0))
                for m in range(count):
                    row = (first + m, q.first + at)
                    step = _stage_query(asked, m, q_rows, row, head_dim, codes)
                    scale = math.log2(math.e) * head_dim**-0.5
                    steps.append(T.Bind(step * key_step * T.float32(scale)))
                for first_tile, some, turns in _together(tiles, pairs.tiles):
                    with T.serial(0, turns) as turn:
                        at_tiles = [first_tile + turn * some + i for i in range(some)]
                        dots = local_rows(some * count, T.int32(0))
                        with T.serial(0, head_dim // 2) as d:
                            words = [T.Bind(key_words[i, d, span(0, 2 * LANES)]) for i in at_tiles]
                            pair = [
                                T.reinterpret("int32", asked[m, span(2 * d, 2)])
                                for m in range(count)
                            ]
                            _add_products(dots, pairs, words, pair)
                        for i, tile in enumerate(at_tiles):
                            for m in range(count):
                                dot = dots[i * count + m][span(0)]
                                score = T.Bind(mask(T.cast(dot, "float32x16"), tile))
                                store(scores, score, m, span(tile * LANES))
                                store(largest[m], T.max(largest[m][span(0)], score), span(0))
                for m in range(count):
                    scratch = local((LANES,))
                    store(scratch, largest[m][span(0)], span(0))
                    top, end = fold(scratch, T.max, LANES), T.float32(math.log2(_WEIGHT_CODES))
                    with T.serial(0, tiles) as tile:
                        at_tile = span(tile * LANES)
                        # Never above `end`, however large scores are: a code must fit.
                        power = (scores[m, at_tile] - spread(top)) * spread(steps[m]) + spread(end)
                        power = T.max(mask(power, tile), spread(T.float32(-126)))
                        code, word = nearest(exp2(power))
                        store(weights, word, m, at_tile)
                        store(sums[m], sums[m][span(0)] + code, span(0))
                factors = []
                for m in range(count):
                    scratch = local((LANES,))
                    store(scratch, sums[m][span(0)], span(0))
                    total = fold(scratch, lambda a, b: a + b, LANES)
                    factors.append(T.Bind(T.float32(1) / total))
                for first_part, some, turns in _together(width // LANES, pairs.tiles):
                    for turn in range(turns):
                        mix(first, count, factors, first_part + turn * some, some)

            def mix(first: Expr, count: int, factors: list[Expr], part: int, some: int) -> None:
                """Adds up weighted values: some times 16 columns of a head, finished."""
                mixed = local_rows(some * count, T.float32(0))
                with T.serial(0, slots_ // _RUN) as run:
                    dots = local_rows(some * count, T.int32(0))
                    with T.serial(0, _RUN // 2) as i:
                        slot = T.Bind(run * (_RUN // 2) + i)
                        columns = [span(2 * (part + j) * LANES, 2 * LANES) for j in range(some)]
                        words = [T.Bind(value_words[slot, at]) for at in columns]
                        pair = [
                            T.reinterpret("int32", weights[m, span(2 * slot, 2)])
                            for m in range(count)
                        ]
                        _add_products(dots, pairs, words, pair)
                    for sum_, dot in zip(mixed, dots, strict=True):
                        store(sum_, sum_[span(0)] + T.cast(dot[span(0)], "float32x16"), span(0))
                for j in range(some):
                    at_part = (part + j) * LANES
                    lanes = min(LANES, head_dim - at_part)
                    for m in range(count):
                        result, step = local((LANES,)), value_steps[span(at_part)]
                        value = mixed[j * count + m][span(0)] * step * spread(factors[m])
                        store(result, value, span(0))
                        if lanes == LANES:
                            store(out, result[span(0)], first + m, span(at + at_part))
                        else:
                            with T.serial(0, lanes) as i:
                                store(out, result[i], first + m, at + at_part + i)

            each_row_block(T.int64(queries), block, attend)
    return kern.function


def _together(count: int, some: int) -> Iterator[tuple[int, int, int]]:
    """Cuts a count: yields (first, how many at a time, how often)."""
    turns = count // some
    if turns:
        yield 0, some, turns
    if count % some:
        yield turns * some, 1, count % some


def _add_products(dots: list[Expr], pairs: Pairs, words: list[Expr], pair: list[Expr]) -> None:
    """Adds every pair's product with all of some words; the first words' sums come first."""
    for m, one in enumerate(pair):
        both = T.Bind(one)
        for i, some in enumerate(words):
            row = dots[i * len(pair) + m]
            store(row, pairs.product(some, both, row[span(0)]), span(0))


def _stage_keys(
    words: Expr, rows: Expr, first: Expr, keys: int, head_dim: int, largest_code: int
) -> Expr:
    """Rounds a head's keys; returns their step. Rows beyond the last repeat it."""
    largest = local((LANES,))
    store(largest, spread(T.float32(0)), span(0))
    with T.serial(0, keys) as row:
        _ask(rows, row + _AHEAD, first, head_dim)
        _add_magnitudes(largest, rows, row, first, head_dim)
    step = _step(fold(largest, T.max, LANES), largest_code)
    inverse = T.Bind(T.float32(1) / step)
    codes = T.alloc_buffer((LANES, head_dim), "int16")
    with T.serial(0, -(-keys // LANES)) as tile:
        with T.serial(0, LANES) as lane:
            row = T.min(tile * LANES + lane, keys - 1)
            _round(codes, lane, rows, row, first, inverse, head_dim)
        with T.grid(head_dim // 2, LANES) as (d, lane):
            pair = T.reinterpret("int32", codes[lane, span(2 * d, 2)])
            store(words, T.reinterpret("int16x2", pair), tile, d, span(2 * lane, 2))
    return step


def _stage_values(
    words: Expr, steps: Expr, rows: Expr, first: Expr, keys: int, head_dim: int
) -> None:
    """Rounds a head's values, each column by a step of its own; fills up with zeros."""
    width = -(-head_dim // LANES) * LANES
    inverse = local((width,))
    for at in range(0, width, LANES):
        store(steps, spread(T.float32(0)), span(at))
    with T.serial(0, keys) as row:
        _ask(rows, row + _AHEAD, first, head_dim)
        for at, lanes in parts(head_dim):
            magnitude = _magnitude(rows[row, span(first + at, lanes)], lanes)
            store(steps, T.max(steps[span(at, lanes)], magnitude), span(at, lanes))
    with T.serial(0, width) as d:
        step = _step(steps[d], _VALUE_CODES)
        store(steps, step, d)
        store(inverse, T.float32(1) / step, d)
    slots_ = -(-keys // _RUN) * _RUN
    with T.grid(slots_ // 2, 2 * width // LANES) as (slot, i):
        store(words, T.broadcast(T.int16(0), LANES), slot, span(i * LANES))
    with T.serial(0, -(-keys // 2)) as slot:
        for at, lanes in parts(head_dim):
            pair = []
            for half in range(2):
                row = T.min(2 * slot + half, keys - 1)  # a missing last one has no weight
                value = rows[row, span(first + at, lanes)] * inverse[span(at, lanes)]
                pair.append(T.Bind(nearest(value, lanes)[1]))
            order = [half * lanes + lane for lane in range(lanes) for half in range(2)]
            store(words, T.Shuffle(pair, order), slot, span(2 * at, 2 * lanes))


def _stage_query(
    asked: Expr, m: int, rows: Expr, at: tuple[Expr, Expr], head_dim: int, largest_code: int
) -> Expr:
    """Rounds a query into row m of `asked`; returns its step."""
    row, first = at
    largest = local((LANES,))
    store(largest, spread(T.float32(0)), span(0))
    _ask(rows, row + _AHEAD, first, head_dim)
    _add_magnitudes(largest, rows, row, first, head_dim)
    step = _step(fold(largest, T.max, LANES), largest_code)
    _round(asked, m, rows, row, first, T.Bind(T.float32(1) / step), head_dim)
    return step


def _ask(rows: Expr, row: Expr, first: Expr, head_dim: int) -> None:
    """Asks for a head of a row: rows lie so far apart that a processor does not foresee them."""
    for at in range(0, head_dim, LANES):
        prefetch(rows[row, first + at])


def _add_magnitudes(largest: Expr, rows: Expr, row: Expr, first: Expr, head_dim: int) -> None:
    for at, lanes in parts(head_dim):
        magnitude = _magnitude(rows[row, span(first + at, lanes)], lanes)
        store(largest, T.max(largest[span(0, lanes)], magnitude), span(0, lanes))


def _round(
    codes: Expr, to: Expr, rows: Expr, row: Expr, first: Expr, inverse: Expr, head_dim: int
) -> None:
    """Rounds a head of a row, times the inverse of its step, into row `to` of codes."""
    for at, lanes in parts(head_dim):
        value = rows[row, span(first + at, lanes)] * spread(inverse, lanes)
        store(codes, nearest(value, lanes)[1], to, span(at, lanes))


def _magnitude(value: Expr, lanes: int) -> Expr:
    value = T.Bind(value)
    return T.max(value, spread(T.float32(0), lanes) - value)


def _step(largest: Expr, codes: int) -> Expr:
    """Returns what a code stands for; not 0, also where everything is."""
    step = T.Bind(largest / T.float32(codes))
    return T.Bind(T.Select(step == T.float32(0), T.float32(1), step))
