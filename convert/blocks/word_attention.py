"""Attention of all tokens with all in 16-bit words, for processors that multiply pairs of them.

Queries and keys are rounded to 13 bits (a sum of 72 products fits into 32), weights to 15 and
values to 10 bits (so does one of 128). Softmax and what is added up between are float32; weights
are normalised by the sum of what they were rounded to. Against float32 the result is off by 1e-3
of its scale at most, a tenth of what the int8 linears beside it lose.
"""

from __future__ import annotations

from tvm.script.ir_builder import tirx as T

from convert.blocks.attention import Heads, attention, keep, slots
from convert.blocks.maths import exp
from convert.blocks.products import PairProduct, Products
from convert.blocks.tir import (
    LANES,
    Expr,
    each_row_block,
    fold,
    kernel,
    lanes_of,
    local,
    local_rows,
    span,
    spread,
    store,
    typed,
)

_QUERY_CODES = 4095  # largest; 4095**2 * 128 < 2**31
_WEIGHT_CODES = 32767
_VALUE_CODES = 511
_RUN = 128  # slots whose weighted values are added as whole numbers: 32767 * 511 * 128 < 2**31
_MAX_HEAD_DIM = 128


def all_attention(
    by: Products, heads: int, head_dim: int, queries: int, keys: int, q: Heads, k: Heads, v: Heads
) -> Expr:
    """Makes the faster of the kernels for a processor; see `word_attention` and `attention`."""
    if by.pairs is None or head_dim % 2 or head_dim > _MAX_HEAD_DIM:
        return attention(heads, head_dim, queries, keys, q, k, v, block=by.queries)
    return word_attention(
        heads, head_dim, queries, keys, q, k, v, block=2 * by.queries, pairs=by.pairs
    )


def word_attention(
    heads: int,
    head_dim: int,
    queries: int,
    keys: int,
    q: Heads,
    k: Heads,
    v: Heads,
    *,
    block: int,
    pairs: PairProduct,
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
        block: queries that share a load of keys or values.
        pairs: the processor's product.
    """
    assert head_dim % 2 == 0
    assert head_dim <= _MAX_HEAD_DIM
    slots_ = -(-keys // _RUN) * _RUN
    tiles, width = -(-keys // LANES), -(-head_dim // LANES) * LANES
    with kernel("word_attention") as kern:
        q_rows = kern.tensor("q", (queries, q.columns))
        k_rows, v_rows = kern.tensor("k", (keys, k.columns)), kern.tensor("v", (keys, v.columns))
        out = kern.tensor("out", (queries, heads * head_dim))
        with T.parallel(0, heads) as head:
            at = T.Bind(head * head_dim)
            key_words = T.alloc_buffer((tiles, head_dim // 2, 2 * LANES), "int16")
            value_words = T.alloc_buffer((slots_ // 2, 2 * width), "int16")
            key_step = _stage_keys(key_words, k_rows, k.first + at, keys, head_dim)
            value_steps = local((width,))
            _stage_values(value_words, value_steps, v_rows, v.first + at, keys, head_dim)
            asked = T.alloc_buffer((block, head_dim), "int16")
            scores = T.alloc_buffer((block, tiles * LANES), "float32")
            weights = T.alloc_buffer((block, slots_), "int16")
            with T.grid(block, slots_ // LANES) as (m, i):
                store(weights, T.broadcast(T.int16(0), LANES), m, span(i * LANES))

            def attend(first: Expr, count: int) -> None:
                steps: list[Expr] = []
                largest = local_rows(count, T.float32(-1e30))
                sums = local_rows(count, T.float32(0))
                for m in range(count):
                    row = (first + m, q.first + at)
                    step = _stage_query(asked, m, q_rows, row, head_dim)
                    steps.append(T.Bind(step * key_step * T.float32(head_dim**-0.5)))
                with T.serial(0, tiles) as tile:
                    dots = local_rows(count, T.int32(0))
                    with T.serial(0, head_dim // 2) as d:
                        words = T.Bind(key_words[tile, d, span(0, 2 * LANES)])
                        for m in range(count):
                            pair = T.reinterpret("int32", asked[m, span(2 * d, 2)])
                            store(dots[m], pairs(words, pair, dots[m][span(0)]), span(0))
                    for m in range(count):
                        score = T.cast(dots[m][span(0)], "float32x16") * spread(steps[m])
                        if keys % LANES:
                            score = keep(score, slots(tile) < spread(T.int32(keys)))
                        score = T.Bind(score)
                        store(scores, score, m, span(tile * LANES))
                        store(largest[m], T.max(largest[m][span(0)], score), span(0))
                for m in range(count):
                    scratch = local((LANES,))
                    store(scratch, largest[m][span(0)], span(0))
                    top = T.Bind(fold(scratch, T.max, LANES))
                    with T.serial(0, tiles) as tile:
                        at_tile = span(tile * LANES)
                        weight = exp(scores[m, at_tile] - spread(top), degree=5)
                        code = T.Bind(T.nearbyint(weight * spread(T.float32(_WEIGHT_CODES))))
                        store(weights, T.cast(code, "int16x16"), m, at_tile)
                        store(sums[m], sums[m][span(0)] + code, span(0))
                factors = []
                for m in range(count):
                    scratch = local((LANES,))
                    store(scratch, sums[m][span(0)], span(0))
                    total = fold(scratch, lambda a, b: a + b, LANES)
                    factors.append(T.Bind(T.float32(1) / total))
                for part in range(width // LANES):
                    mixed = local_rows(count, T.float32(0))
                    with T.serial(0, slots_ // _RUN) as run:
                        dots = local_rows(count, T.int32(0))
                        with T.serial(0, _RUN // 2) as i:
                            slot = T.Bind(run * (_RUN // 2) + i)
                            words = T.Bind(value_words[slot, span(2 * part * LANES, 2 * LANES)])
                            for m in range(count):
                                pair = T.reinterpret("int32", weights[m, span(2 * slot, 2)])
                                store(dots[m], pairs(words, pair, dots[m][span(0)]), span(0))
                        for m in range(count):
                            value = T.cast(dots[m][span(0)], "float32x16")
                            store(mixed[m], mixed[m][span(0)] + value, span(0))
                    lanes = min(LANES, head_dim - part * LANES)
                    steps_ = value_steps[span(part * LANES)]
                    for m in range(count):
                        result = local((LANES,))
                        store(result, mixed[m][span(0)] * steps_ * spread(factors[m]), span(0))
                        column = at + part * LANES
                        if lanes == LANES:
                            store(out, result[span(0)], first + m, span(column))
                        else:
                            with T.serial(0, lanes) as i:
                                store(out, result[i], first + m, column + i)

            each_row_block(T.int64(queries), block, attend)
    return kern.function


def _stage_keys(words: Expr, rows: Expr, first: Expr, keys: int, head_dim: int) -> Expr:
    """Rounds a head's keys; returns their step. Rows beyond the last repeat it."""
    lanes, tiles = lanes_of(head_dim), -(-keys // LANES)
    largest = local((lanes,))
    store(largest, spread(T.float32(0), lanes), span(0, lanes))
    with T.grid(keys, head_dim // lanes) as (row, i):
        magnitude = _magnitude(rows[row, span(first + i * lanes, lanes)], lanes)
        store(largest, T.max(largest[span(0, lanes)], magnitude), span(0, lanes))
    step = _step(fold(largest, T.max, lanes), _QUERY_CODES)
    inverse = spread(T.Bind(T.float32(1) / step), lanes)
    codes = T.alloc_buffer((LANES, head_dim), "int16")
    with T.serial(0, tiles) as tile:
        with T.grid(LANES, head_dim // lanes) as (lane, i):
            row = T.min(tile * LANES + lane, keys - 1)
            values = rows[row, span(first + i * lanes, lanes)]
            store(codes, _code(values * inverse, lanes), lane, span(i * lanes, lanes))
        with T.grid(head_dim // 2, LANES) as (d, lane):
            pair = T.reinterpret("int32", codes[lane, span(2 * d, 2)])
            store(words, T.reinterpret("int16x2", pair), tile, d, span(2 * lane, 2))
    return step


def _stage_values(
    words: Expr, steps: Expr, rows: Expr, first: Expr, keys: int, head_dim: int
) -> None:
    """Rounds a head's values, each column by a step of its own; fills up with zeros."""
    lanes, width = lanes_of(head_dim), -(-head_dim // LANES) * LANES
    with T.serial(0, width // LANES) as i:
        store(steps, spread(T.float32(0)), span(i * LANES))
    with T.grid(keys, head_dim // lanes) as (row, i):
        at = span(i * lanes, lanes)
        magnitude = _magnitude(rows[row, span(first + i * lanes, lanes)], lanes)
        store(steps, T.max(steps[at], magnitude), at)
    with T.serial(0, width) as d:
        store(steps, _step(steps[d], _VALUE_CODES), d)
    slots_ = -(-keys // _RUN) * _RUN
    with T.grid(slots_ // 2, 2 * width // LANES) as (slot, i):
        store(words, T.broadcast(T.int16(0), LANES), slot, span(i * LANES))
    with T.grid(-(-keys // 2), head_dim // lanes) as (slot, i):
        step = steps[span(i * lanes, lanes)]
        pair = []
        for half in range(2):
            row = T.min(2 * slot + half, keys - 1)  # a missing last one has no weight
            values = rows[row, span(first + i * lanes, lanes)]
            pair.append(T.Bind(_code(values / step, lanes)))
        order = [half * lanes + lane for lane in range(lanes) for half in range(2)]
        store(words, T.Shuffle(pair, order), slot, span(2 * i * lanes, 2 * lanes))


def _stage_query(asked: Expr, m: int, rows: Expr, at: tuple[Expr, Expr], head_dim: int) -> Expr:
    """Rounds a query into row m of `asked`; returns its step."""
    (row, first), lanes = at, lanes_of(head_dim)
    largest = local((lanes,))
    store(largest, spread(T.float32(0), lanes), span(0, lanes))
    with T.serial(0, head_dim // lanes) as i:
        magnitude = _magnitude(rows[row, span(first + i * lanes, lanes)], lanes)
        store(largest, T.max(largest[span(0, lanes)], magnitude), span(0, lanes))
    step = _step(fold(largest, T.max, lanes), _QUERY_CODES)
    with T.serial(0, head_dim // lanes) as i:
        values = rows[row, span(first + i * lanes, lanes)]
        store(asked, _code(values / spread(step, lanes), lanes), m, span(i * lanes, lanes))
    return step


def _code(value: Expr, lanes: int) -> Expr:
    return T.cast(T.nearbyint(value), typed("int16", lanes))


def _magnitude(value: Expr, lanes: int) -> Expr:
    value = T.Bind(value)
    return T.max(value, spread(T.float32(0), lanes) - value)


def _step(largest: Expr, codes: int) -> Expr:
    """Returns what a code stands for; not 0, also where everything is."""
    step = T.Bind(largest / T.float32(codes))
    return T.Bind(T.Select(step == T.float32(0), T.float32(1), step))
