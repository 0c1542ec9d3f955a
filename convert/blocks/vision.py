"""Blocks of vision encoder and resampler: matrices in the recipe's formats, rest in float32."""

from __future__ import annotations

from collections.abc import Sequence

from convert.blocks import rows
from convert.blocks.attention import Heads
from convert.blocks.graph import Expr, Graph, tensor, tensor_type
from convert.blocks.linear import Linear
from convert.blocks.matrix_formats import Formats, Rows, StoredMatrix, variant
from convert.blocks.word_attention import all_attention
from convert.checkpoint.config import ResamplerConfig, VisionConfig


def vision_embed(graph: Graph, c: VisionConfig, formats: Formats) -> None:
    """Adds the function (pixels (3, S, S), weight, bias, positions (P, D)) -> (P, D)."""
    pixels = tensor("pixels", (3, c.image_size, c.image_size))
    weight = formats.matrix("vision.patch_embed.weight", c.embed_dim, c.patch_dim)
    bias, positions = (
        tensor("bias", (c.embed_dim,)),
        tensor("positions", (c.num_patches, c.embed_dim)),
    )
    with graph.function("vision_embed", [pixels, *weight.parameters, bias, positions]):
        cut = graph.call(rows.patches(c), [pixels], tensor_type((c.num_patches, c.patch_dim)))
        project = Linear(rows=c.embed_dim, columns=c.patch_dim, bias=True, residual=1.0)
        graph.finish(weight.linear(graph, project, cut, bias, positions))


def vision_block(graph: Graph, c: VisionConfig, formats: Formats) -> None:
    """Adds the function vision_block for every combination of formats that some block has."""
    d, hidden = c.embed_dim, c.mlp_hidden_dim
    shapes = {"qkv": (3 * d, d), "proj": (d, d), "fc1": (hidden, d), "fc2": (d, hidden)}
    names = [f"vision.blocks.*.{name}.weight" for name in shapes]
    for combination in formats.combinations(names, c.depth):
        stored = zip(names, shapes.values(), combination, strict=True)
        matrices = [formats.matrix(name, *shape, form) for name, shape, form in stored]
        _block(graph, c, matrices, variant("vision_block", combination))


def _block(graph: Graph, c: VisionConfig, matrices: Sequence[StoredMatrix], name: str) -> None:
    """Adds the function (x (P, D), norm1, qkv, proj, norm2, fc1, fc2) -> (P, D).

    Each name stands for a weight, two arguments where it is quantized, and a bias.
    """
    d, hidden = c.embed_dim, c.mlp_hidden_dim
    x = tensor("x", (c.num_patches, d))
    norm1, norm2 = _norm("norm1", d), _norm("norm2", d)
    qkv, proj, fc1, fc2 = matrices
    outputs = {"qkv": 3 * d, "proj": d, "fc1": hidden, "fc2": d}
    biases = [tensor(f"{part}_bias", (width,)) for part, width in outputs.items()]
    qkv_bias, proj_bias, fc1_bias, fc2_bias = biases
    parameters = [x, *norm1, *qkv.parameters, qkv_bias, *proj.parameters, proj_bias]
    parameters += [*norm2, *fc1.parameters, fc1_bias, *fc2.parameters, fc2_bias]
    norm = rows.layer_norm(d, c.norm_eps)
    with graph.function(name, parameters):
        normed = Rows(norm, (x, *norm1))
        packed = qkv.linear(graph, Linear(rows=3 * d, columns=d, bias=True), normed, qkv_bias)
        heads = [Heads(3 * d, i * d) for i in range(3)]
        attend = all_attention(
            graph.products, c.num_heads, c.head_dim, c.num_patches, c.num_patches, *heads
        )
        mixed = graph.call(attend, [packed] * 3, x.ty)
        added = Linear(rows=d, columns=d, bias=True, residual=1.0)
        y = proj.linear(graph, added, mixed, proj_bias, x)
        normed = Rows(norm, (y, *norm2))
        opened = Linear(rows=hidden, columns=d, bias=True, gelu=True)
        wide = fc1.linear(graph, opened, normed, fc1_bias)
        added = Linear(rows=d, columns=hidden, bias=True, residual=1.0)
        graph.finish(fc2.linear(graph, added, wide, fc2_bias, y))


def vision_norm(graph: Graph, c: VisionConfig) -> None:
    """Adds the function (x (P, D), weight, bias) -> (P, D)."""
    x = tensor("x", (c.num_patches, c.embed_dim))
    norm = _norm("norm", c.embed_dim)
    with graph.function("vision_norm", [x, *norm]):
        graph.finish(Rows(rows.layer_norm(c.embed_dim, c.norm_eps), (x, *norm)).write(graph))


def resampler(graph: Graph, c: ResamplerConfig, patches: int, formats: Formats) -> None:
    """Adds the function (features (P, Dv), ...) -> (Q, D).

    After the features: kv_proj, ln_kv (2), query (Q, D), k_proj, key_positions (P, D),
    v_proj, out_proj, ln_post (2), proj; v_proj and out_proj with biases, and a quantized matrix
    being two arguments. The query is finished (normed, with positions,
    projected), and so are the keys' positions: neither depends on the picture.
    """
    d = c.embed_dim
    features = tensor("features", (patches, c.kv_dim))
    widths = {"kv_proj": c.kv_dim, "k_proj": d, "v_proj": d, "out_proj": d, "proj": d}
    kv_proj, k_proj, v_proj, out_proj, proj = (
        formats.matrix(f"resampler.{name}.weight", d, width) for name, width in widths.items()
    )
    ln_kv, ln_post = _norm("ln_kv", d), _norm("ln_post", d)
    query, key_positions = tensor("query", (c.query_num, d)), tensor("key_positions", (patches, d))
    v_bias, out_bias = tensor("v_proj_bias", (d,)), tensor("out_proj_bias", (d,))
    parameters = [features, *kv_proj.parameters, *ln_kv, query, *k_proj.parameters, key_positions]
    parameters += [*v_proj.parameters, v_bias, *out_proj.parameters, out_bias]
    parameters += [*ln_post, *proj.parameters]
    norm = rows.layer_norm(d, c.norm_eps)
    with graph.function("resampler", parameters):
        kv = kv_proj.linear(graph, Linear(rows=d, columns=c.kv_dim), features)
        kv = Rows(norm, (kv, *ln_kv)).write(graph)  # for two matrices
        keys = Linear(rows=d, columns=d, residual=1.0)
        k = k_proj.linear(graph, keys, kv, key_positions)
        biased = Linear(rows=d, columns=d, bias=True)
        v = v_proj.linear(graph, biased, kv, v_bias)
        attend = all_attention(
            graph.products, c.num_heads, c.head_dim, c.query_num, patches, *[Heads(d)] * 3
        )
        mixed = graph.call(attend, [query, k, v], query.ty)
        x = out_proj.linear(graph, biased, mixed, out_bias)
        normed = Rows(norm, (x, *ln_post))
        graph.finish(proj.linear(graph, Linear(rows=d, columns=d), normed))


def _norm(name: str, width: int) -> list[Expr]:
    return [tensor(f"{name}_{part}", (width,)) for part in ("weight", "bias")]
