"""The decoder's blocks: matrices as a recipe says, int8 activations, the rest in float32.

The number of tokens L varies, and so does the cache's number of tiles.
"""

from __future__ import annotations

from tvm import tirx

from convert.blocks import attention, rows
from convert.blocks.graph import Expr, Graph, integers, tensor, tensor_type, variable
from convert.blocks.linear import Linear
from convert.blocks.stored import Formats, Rows
from convert.config import DecoderConfig
from quantize.layout import TILE_ROWS


def embed(graph: Graph, c: DecoderConfig, formats: Formats) -> None:
    """Adds the function (ids (L,) int32, embedding) -> (L, D), scaled by `scale_emb`."""
    ids = tensor("ids", (variable("length"),), "int32")
    table = formats.matrix("llm.embed", c.vocab_size, c.hidden_size)
    with graph.function("embed", [ids, *table.parameters]):
        graph.finish(table.look_up(graph, ids, c.scale_emb))


def decoder_layer(graph: Graph, c: DecoderConfig, formats: Formats) -> None:
    """Adds the functions decoder_layer and, for one token, decoder_step; see `_layer`.

    Shapes that are known spare the virtual machine half of its work, which a token feels; the
    kernels are the same.
    """
    _layer(graph, c, formats, "decoder_layer", variable("length"))
    _layer(graph, c, formats, "decoder_step", tirx.IntImm("int64", 1))


def _layer(graph: Graph, c: DecoderConfig, formats: Formats, name: str, length: Expr) -> None:
    """Adds the function (x (L, D), angles, keys, values, place, ...) -> (L, D).

    angles (L, 4, head_dim/2): see `attention.rotate_and_store`. keys (H, T, head_dim, 16) and
    values (H, T, 16, head_dim), float16: the layer's cache, which the call extends. place: a
    shape (start, window, pinned), start being the first token's index. Then the weights:
    input_norm, qkv, o, post_norm, gate_up, down, a quantized matrix being two arguments.
    """
    d, hidden, heads = c.hidden_size, c.intermediate_size, c.num_key_value_heads
    count = variable("tiles")
    start, window, pinned = (variable(name) for name in ("start", "window", "pinned"))
    x = tensor("x", (length, d))
    angles = tensor("angles", (length, 4, c.head_dim // 2))
    keys = tensor("keys", (heads, count, c.head_dim, TILE_ROWS), "float16")
    values = tensor("values", (heads, count, TILE_ROWS, c.head_dim), "float16")
    place = integers("place", (start, window, pinned))
    input_norm, post_norm = (tensor(n, (d,), "float16") for n in ("input_norm", "post_norm"))
    shapes = {
        "qkv": (d + 2 * c.kv_dim, d), "o": (d, d), "gate_up": (2 * hidden, d), "down": (d, hidden)
    }  # fmt: skip
    qkv, o, gate_up, down = (
        formats.matrix(f"llm.layers.*.{name}", *shape) for name, shape in shapes.items()
    )
    parameters = [x, angles, keys, values, place]
    parameters += [input_norm, *qkv.parameters, *o.parameters]
    parameters += [post_norm, *gate_up.parameters, *down.parameters]
    norm = rows.rms_norm(d, c.rms_norm_eps)
    with graph.function(name, parameters):
        normed = Rows(norm, (x, input_norm))
        packed = qkv.linear(graph, Linear(rows=d + 2 * c.kv_dim, columns=d), normed)
        rotated_type = tensor_type((length, 2, d))
        taken = [packed, angles, start, pinned, keys, values]
        keys, values, queries = graph.call_in_place(
            attention.rotate_and_store(c), taken, (4, 5), rotated_type
        )
        seen = [queries, keys, values, start, window, pinned]
        mixed = graph.call(attention.cached_attention(c, graph.products.queries), seen, x.ty)
        added = Linear(rows=d, columns=d, residual=c.residual_scale)
        y = o.linear(graph, added, mixed, x)
        normed = Rows(norm, (y, post_norm))
        both = gate_up.linear(graph, Linear(rows=2 * hidden, columns=d), normed)
        gated = Rows(rows.gate(hidden), (both,))
        added = Linear(rows=d, columns=hidden, residual=c.residual_scale)
        graph.finish(down.linear(graph, added, gated, y))


def lm_head(graph: Graph, c: DecoderConfig, formats: Formats) -> None:
    """Adds the function (x (L, D), norm, head) -> logits (L, V)."""
    length, d = variable("length"), c.hidden_size
    x, norm = tensor("x", (length, d)), tensor("norm", (d,), "float16")
    head = formats.matrix("llm.head" if formats.untied_head else "llm.embed", c.vocab_size, d)
    with graph.function("lm_head", [x, norm, *head.parameters]):
        normed = Rows(rows.rms_norm(d, c.rms_norm_eps, c.logits_divisor), (x, norm))
        graph.finish(head.linear(graph, Linear(rows=c.vocab_size, columns=d), normed))
