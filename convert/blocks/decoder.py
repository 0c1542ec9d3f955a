"""The decoder's blocks: matrices in the recipe's formats, int8 activations, the rest float32.

The number of tokens L varies, and so does the cache's number of tiles.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx

from convert.blocks import cached_attention, rows
from convert.blocks.graph import Expr, Graph, integers, tensor, tensor_type, variable
from convert.blocks.kv_cache import cache_tensors
from convert.blocks.linear import Linear
from convert.blocks.matrix_formats import Formats, Rows, StoredMatrix, variant
from convert.checkpoint.config import DecoderConfig


def embed(graph: Graph, c: DecoderConfig, formats: Formats) -> None:
    """Adds the function (ids (L,) int32, embedding) -> (L, D), scaled by `scale_emb`."""
    ids = tensor("ids", (variable("length"),), "int32")
    table = formats.matrix("llm.embed", c.vocab_size, c.hidden_size)
    with graph.function("embed", [ids, *table.parameters]):
        graph.finish(table.look_up(graph, ids, c.scale_emb))


def decoder_layer(graph: Graph, c: DecoderConfig, formats: Formats, kv: str) -> None:
    """Adds the functions decoder_layer and, for one token, decoder_step; see `_layer`.

    There is one of each for every combination of formats that some layer has; layers share kernels.
    With known shapes the virtual machine has half the work, a noticeable part of a token's time;
    the kernels are the same.
    """
    d, hidden = c.hidden_size, c.intermediate_size
    shapes = {
        "qkv": (d + 2 * c.kv_dim, d), "o": (d, d), "gate_up": (2 * hidden, d), "down": (d, hidden)
    }  # fmt: skip
    names = [f"llm.layers.*.{name}" for name in shapes]
    one = tirx.IntImm("int64", 1)
    for combination in formats.combinations(names, c.num_hidden_layers):
        for function, length in (("decoder_layer", variable("length")), ("decoder_step", one)):
            stored = zip(names, shapes.values(), combination, strict=True)
            matrices = [formats.matrix(name, *shape, form) for name, shape, form in stored]
            _layer(graph, c, matrices, kv, variant(function, combination), length)


def _layer(
    graph: Graph,
    c: DecoderConfig,
    matrices: Sequence[StoredMatrix],
    kv: str,
    name: str,
    length: Expr,
) -> None:
    """Adds the function (x (L, D), angles, cache, place, ...) -> (L, D).

    angles (L, 4, head_dim/2): see `cached_attention.rotate_and_store`. cache: the tensors of
    `kv_cache.cache_tensors` for the kind `kv`, which the call extends. place: a shape (start,
    window, pinned), start being the first token's index. Then the weights:
    input_norm, qkv, o, post_norm, gate_up, down, a quantized matrix being two arguments.
    """
    d, hidden = c.hidden_size, c.intermediate_size
    start, window, pinned = (variable(name) for name in ("start", "window", "pinned"))
    x = tensor("x", (length, d))
    angles = tensor("angles", (length, 4, c.head_dim // 2))
    cache = [tensor(*one) for one in cache_tensors(c, kv, variable("tiles"))]
    place = integers("place", (start, window, pinned))
    input_norm, post_norm = (tensor(n, (d,), "float16") for n in ("input_norm", "post_norm"))
    qkv, o, gate_up, down = matrices
    parameters = [x, angles, *cache, place]
    parameters += [input_norm, *qkv.parameters, *o.parameters]
    parameters += [post_norm, *gate_up.parameters, *down.parameters]
    norm = rows.rms_norm(d, c.rms_norm_eps)
    with graph.function(name, parameters):
        normed = Rows(norm, (x, input_norm))
        packed = qkv.linear(graph, Linear(rows=d + 2 * c.kv_dim, columns=d), normed)
        rotated_type = tensor_type((length, 2, d))
        taken = [packed, angles, start, pinned, *cache]
        in_place = range(len(taken) - len(cache), len(taken))
        *cache, queries = graph.call_in_place(
            cached_attention.rotate_and_store(c, kv), taken, in_place, rotated_type
        )
        attention = cached_attention.cached_attention(c, kv, graph.products.queries)
        mixed = graph.call(attention, [queries, *cache, start, window, pinned], x.ty)
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
