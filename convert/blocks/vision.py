"""The vision encoder's and the resampler's blocks. Weights are float16 tiles, the rest float32."""

from __future__ import annotations

from convert.blocks import rows
from convert.blocks.attention import Heads, attention
from convert.blocks.graph import Expr, Graph, tensor, tensor_type
from convert.blocks.linear import Linear, linear_f16
from convert.config import ResamplerConfig, VisionConfig
from quantize.layout import TILE_ROWS, tiles


def vision_embed(graph: Graph, c: VisionConfig) -> None:
    """Adds the function (pixels (3, S, S), weight, bias, positions (P, D)) -> (P, D)."""
    parameters = [
        tensor("pixels", (3, c.image_size, c.image_size)),
        _weight("weight", c.embed_dim, c.patch_dim),
        tensor("bias", (c.embed_dim,)),
        tensor("positions", (c.num_patches, c.embed_dim)),
    ]
    pixels, weight, bias, positions = parameters
    with graph.function("vision_embed", parameters):
        cut = graph.call(rows.patches(c), [pixels], tensor_type((c.num_patches, c.patch_dim)))
        project = Linear(rows=c.embed_dim, columns=c.patch_dim, bias=True, residual=1.0)
        graph.finish(_linear(graph, project, cut, weight, bias, positions))


def vision_block(graph: Graph, c: VisionConfig) -> None:
    """Adds the function (x (P, D), norm1, qkv, proj, norm2, fc1, fc2) -> (P, D).

    Each name stands for two arguments, weight and bias.
    """
    d, hidden = c.embed_dim, c.mlp_hidden_dim
    shapes = {"qkv": (3 * d, d), "proj": (d, d), "fc1": (hidden, d), "fc2": (d, hidden)}
    names = ("norm1", "qkv", "proj", "norm2", "fc1", "fc2")
    x = tensor("x", (c.num_patches, d))
    pairs = [_pair(name, *shapes.get(name, (d,))) for name in names]
    norm1, qkv, proj, norm2, fc1, fc2 = pairs
    norm, hidden_type = rows.layer_norm(d, c.norm_eps), x.ty
    with graph.function("vision_block", [x, *(p for pair in pairs for p in pair)]):
        normed = graph.call(norm, [x, *norm1], hidden_type)
        packed = _linear(graph, Linear(rows=3 * d, columns=d, bias=True), normed, *qkv)
        heads = [Heads(3 * d, i * d) for i in range(3)]
        attend = attention(
            c.num_heads,
            c.head_dim,
            c.num_patches,
            c.num_patches,
            *heads,
            block=graph.products.queries,
        )
        mixed = graph.call(attend, [packed] * 3, hidden_type)
        added = Linear(rows=d, columns=d, bias=True, residual=1.0)
        y = _linear(graph, added, mixed, *proj, x)
        normed = graph.call(norm, [y, *norm2], hidden_type)
        wide = _linear(graph, Linear(rows=hidden, columns=d, bias=True, gelu=True), normed, *fc1)
        added = Linear(rows=d, columns=hidden, bias=True, residual=1.0)
        graph.finish(_linear(graph, added, wide, *fc2, y))


def vision_norm(graph: Graph, c: VisionConfig) -> None:
    """Adds the function (x (P, D), weight, bias) -> (P, D)."""
    x = tensor("x", (c.num_patches, c.embed_dim))
    norm = _pair("norm", c.embed_dim)
    with graph.function("vision_norm", [x, *norm]):
        graph.finish(graph.call(rows.layer_norm(c.embed_dim, c.norm_eps), [x, *norm], x.ty))


def resampler(graph: Graph, c: ResamplerConfig, patches: int) -> None:
    """Adds the function (features (P, Dv), ...) -> (Q, D).

    After the features: kv_proj, ln_kv (2), query (Q, D), k_proj, key_positions (P, D),
    v_proj (2), out_proj (2), ln_post (2), proj. The query is finished (normed, with positions,
    projected), and so are the keys' positions: neither depends on the picture.
    """
    d = c.embed_dim
    features = tensor("features", (patches, c.kv_dim))
    kv_weight = _weight("kv_proj", d, c.kv_dim)
    ln_kv, ln_post = _pair("ln_kv", d), _pair("ln_post", d)
    query = tensor("query", (c.query_num, d))
    k_weight, key_positions = _weight("k_proj", d, d), tensor("key_positions", (patches, d))
    v_proj, out_proj = _pair("v_proj", d, d), _pair("out_proj", d, d)
    proj = _weight("proj", d, d)
    parameters = [features, kv_weight, *ln_kv, query, k_weight, key_positions]
    parameters += [*v_proj, *out_proj, *ln_post, proj]
    norm = rows.layer_norm(d, c.norm_eps)
    with graph.function("resampler", parameters):
        kv = _linear(graph, Linear(rows=d, columns=c.kv_dim), features, kv_weight)
        kv = graph.call(norm, [kv, *ln_kv], kv.ty)
        keys = Linear(rows=d, columns=d, residual=1.0)
        k = _linear(graph, keys, kv, k_weight, key_positions)
        biased = Linear(rows=d, columns=d, bias=True)
        v = _linear(graph, biased, kv, *v_proj)
        attend = attention(
            c.num_heads,
            c.head_dim,
            c.query_num,
            patches,
            *[Heads(d)] * 3,
            block=graph.products.queries,
        )
        mixed = graph.call(attend, [query, k, v], query.ty)
        x = _linear(graph, biased, mixed, *out_proj)
        x = graph.call(norm, [x, *ln_post], x.ty)
        graph.finish(_linear(graph, Linear(rows=d, columns=d), x, proj))


def _weight(name: str, out: int, inputs: int) -> Expr:
    return tensor(name, (tiles(out), inputs, TILE_ROWS), "float16")


def _pair(name: str, out: int, inputs: int | None = None) -> list[Expr]:
    """Makes the parameters of a linear, or without `inputs` of a norm: weight and bias."""
    weight_name, bias = f"{name}_weight", tensor(f"{name}_bias", (out,))
    weight = tensor(weight_name, (out,)) if inputs is None else _weight(weight_name, out, inputs)
    return [weight, bias]


def _linear(graph: Graph, c: Linear, x: Expr, *arguments: Expr) -> Expr:
    return graph.call(
        linear_f16(c, graph.products), [x, *arguments], tensor_type((x.ty.shape[0], c.rows))
    )
