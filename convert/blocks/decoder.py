"""The decoder's blocks: 4-bit weights, int8 activations, everything between in float32.

The number of tokens L varies, and so does the cache's number of tiles.
"""

from __future__ import annotations

from convert.blocks import attention, rows
from convert.blocks.graph import Expr, Graph, integers, tensor, tensor_type, variable
from convert.blocks.linear import Linear, linear_q4, quantize
from convert.config import DecoderConfig
from quantize.layout import TILE_ROWS, tiles
from quantize.schemes import GroupScheme


def embed(graph: Graph, c: DecoderConfig, scheme: GroupScheme) -> None:
    """Adds the function (ids (L,) int32, q_weight, q_scale) -> (L, D), scaled by `scale_emb`."""
    length = variable("length")
    ids = tensor("ids", (length,), "int32")
    weight = _weight("embed", c.vocab_size, c.hidden_size, scheme)
    kernel = rows.embedding(c.vocab_size, c.hidden_size, c.scale_emb, scheme)
    with graph.function("embed", [ids, *weight]):
        graph.finish(graph.call(kernel, [ids, *weight], tensor_type((length, c.hidden_size))))


def decoder_layer(graph: Graph, c: DecoderConfig, scheme: GroupScheme) -> None:
    """Adds the function (x (L, D), angles, keys, values, place, ...) -> (L, D).

    angles (L, 4, head_dim/2): see `attention.rotate_queries`. keys (H, T, head_dim, 16) and
    values (H, T, 16, head_dim), float16: the layer's cache, which the call extends. place: a
    shape (start, window, pinned), start being the first token's index. Then the weights:
    input_norm, qkv (2), o (2), post_norm, gate_up (2), down (2).
    """
    d, hidden, heads = c.hidden_size, c.intermediate_size, c.num_key_value_heads
    length, count = variable("length"), variable("tiles")
    start, window, pinned = (variable(name) for name in ("start", "window", "pinned"))
    x = tensor("x", (length, d))
    angles = tensor("angles", (length, 4, c.head_dim // 2))
    keys = tensor("keys", (heads, count, c.head_dim, TILE_ROWS), "float16")
    values = tensor("values", (heads, count, TILE_ROWS, c.head_dim), "float16")
    place = integers("place", (start, window, pinned))
    input_norm, post_norm = (tensor(n, (d,), "float16") for n in ("input_norm", "post_norm"))
    qkv, o = _weight("qkv", d + 2 * c.kv_dim, d, scheme), _weight("o", d, d, scheme)
    gate_up, down = _weight("gate_up", 2 * hidden, d, scheme), _weight("down", d, hidden, scheme)
    parameters = [x, angles, keys, values, place]
    parameters += [input_norm, *qkv, *o, post_norm, *gate_up, *down]
    norm = rows.rms_norm(d, c.rms_norm_eps)
    with graph.function("decoder_layer", parameters):
        normed = graph.call(norm, [x, input_norm], x.ty)
        packed = _linear(graph, Linear(rows=d + 2 * c.kv_dim, columns=d), scheme, normed, qkv)
        rotated_type = tensor_type((length, 2, d))
        queries = graph.call(attention.rotate_queries(c), [packed, angles], rotated_type)
        written = [packed, angles, start, pinned, keys, values]
        keys, values = graph.call_in_place(attention.store_keys(c), written, (4, 5))
        seen = [queries, keys, values, start, window, pinned]
        mixed = graph.call(attention.cached_attention(c, graph.products.queries), seen, x.ty)
        added = Linear(rows=d, columns=d, residual=c.residual_scale)
        y = _linear(graph, added, scheme, mixed, o, x)
        normed = graph.call(norm, [y, post_norm], x.ty)
        both = _linear(graph, Linear(rows=2 * hidden, columns=d), scheme, normed, gate_up)
        gated = graph.call(rows.gate(hidden), [both], tensor_type((length, hidden)))
        added = Linear(rows=d, columns=hidden, residual=c.residual_scale)
        graph.finish(_linear(graph, added, scheme, gated, down, y))


def lm_head(graph: Graph, c: DecoderConfig, scheme: GroupScheme) -> None:
    """Adds the function (x (L, D), norm, q_weight, q_scale) -> logits (L, V)."""
    length, d = variable("length"), c.hidden_size
    x, norm = tensor("x", (length, d)), tensor("norm", (d,), "float16")
    weight = _weight("head", c.vocab_size, d, scheme)
    with graph.function("lm_head", [x, norm, *weight]):
        kernel = rows.rms_norm(d, c.rms_norm_eps, c.logits_divisor)
        normed = graph.call(kernel, [x, norm], x.ty)
        head = Linear(rows=c.vocab_size, columns=d)
        graph.finish(_linear(graph, head, scheme, normed, weight))


def _weight(name: str, out: int, inputs: int, scheme: GroupScheme) -> list[Expr]:
    groups = inputs // scheme.group_size
    return [
        tensor(f"{name}_q_weight", (tiles(out), groups, 4, 4 * TILE_ROWS), "uint8"),
        tensor(f"{name}_q_scale", (tiles(out), groups, TILE_ROWS), "float16"),
    ]


def _linear(
    graph: Graph,
    c: Linear,
    scheme: GroupScheme,
    x: Expr,
    weight: list[Expr],
    *arguments: Expr,
) -> Expr:
    length, groups = x.ty.shape[0], c.columns // scheme.group_size
    activations = graph.call(
        quantize(c.columns, scheme),
        [x],
        tensor_type((length, groups, scheme.group_size), "int8"),
        tensor_type((length, groups)),
        tensor_type((length, groups), "int32"),
    )
    out = tensor_type((length, c.rows))
    return graph.call(
        linear_q4(c, scheme, graph.products), [*activations, *weight, *arguments], out
    )
