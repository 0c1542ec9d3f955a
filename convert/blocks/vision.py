"""Blocks of vision encoder and resampler: matrices in the recipe's formats, rest in float32.

The number of patches P varies from image to image, up to `VisionConfig.most_patches`. The memory
between kernels is planned for that many: whatever an image's shape, calls take the same buffers.
"""

from __future__ import annotations

from collections.abc import Sequence

from convert.blocks import rows
from convert.blocks.attention import Heads, attention
from convert.blocks.byte_attention import byte_attention
from convert.blocks.graph import Expr, Graph, tensor, tensor_type, variable
from convert.blocks.linear import Linear
from convert.blocks.matrix_formats import Formats, Rows, StoredMatrix, variant
from convert.blocks.products import Products
from convert.blocks.word_attention import MAX_HEAD_DIM, word_attention
from convert.checkpoint.config import ResamplerConfig, VisionConfig

PATCHES = "patches"  # the variable of the functions whose memory is planned


def vision_embed(graph: Graph, c: VisionConfig, formats: Formats) -> None:
    """Adds the function (pixels (3, H, W), positions (P, D), weight, bias) -> (P, D)."""
    height, width = variable("height"), variable("width")
    patches = height // c.patch_size * (width // c.patch_size)
    pixels = tensor("pixels", (3, height, width))
    positions, bias = tensor("positions", (patches, c.embed_dim)), tensor("bias", (c.embed_dim,))
    weight = formats.matrix("vision.patch_embed.weight", c.embed_dim, c.patch_dim)
    with graph.function("vision_embed", [pixels, positions, *weight.parameters, bias]):
        cut = graph.call(rows.patches(c), [pixels], tensor_type((patches, c.patch_dim)))
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
    patches = variable(PATCHES)
    x = tensor("x", (patches, d))
    norm1, norm2 = _norm("norm1", d), _norm("norm2", d)
    qkv, proj, fc1, fc2 = matrices
    outputs = {"qkv": 3 * d, "proj": d, "fc1": hidden, "fc2": d}
    biases = [tensor(f"{part}_bias", (width,)) for part, width in outputs.items()]
    qkv_bias, proj_bias, fc1_bias, fc2_bias = biases
    parameters = [x, *norm1, *qkv.parameters, qkv_bias, *proj.parameters, proj_bias]
    parameters += [*norm2, *fc1.parameters, fc1_bias, *fc2.parameters, fc2_bias]
    norm = rows.layer_norm(d, c.norm_eps)
    with graph.function(name, parameters, {PATCHES: c.most_patches}):
        normed = Rows(norm, (x, *norm1))
        packed = qkv.linear(graph, Linear(rows=3 * d, columns=d, bias=True), normed, qkv_bias)
        heads = [Heads(3 * d, i * d) for i in range(3)]
        rounded = qkv.rounds and proj.rounds
        size = (c.num_heads, c.head_dim, c.most_patches)
        attend = _attention(graph.products, *size, *heads, rounded=rounded)
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
    x = tensor("x", (variable(PATCHES), c.embed_dim))
    norm = _norm("norm", c.embed_dim)
    with graph.function("vision_norm", [x, *norm]):
        graph.finish(Rows(rows.layer_norm(c.embed_dim, c.norm_eps), (x, *norm)).write(graph))


def resampler(graph: Graph, c: ResamplerConfig, most_patches: int, formats: Formats) -> None:
    """Adds the function (features (P, Dv), key_positions (P, D), ...) -> (Q, D).

    After these: kv_proj, ln_kv (2), query (Q, D), k_proj, v_proj, out_proj, ln_post (2), proj;
    v_proj and out_proj with biases, and a quantized matrix being two arguments. The query is
    finished (normed, with positions, projected), and so are the keys' positions: neither depends on
    what a picture shows.
    """
    d, patches = c.embed_dim, variable(PATCHES)
    features = tensor("features", (patches, c.kv_dim))
    key_positions = tensor("key_positions", (patches, d))
    widths = {"kv_proj": c.kv_dim, "k_proj": d, "v_proj": d, "out_proj": d, "proj": d}
    kv_proj, k_proj, v_proj, out_proj, proj = (
        formats.matrix(f"resampler.{name}.weight", d, width) for name, width in widths.items()
    )
    ln_kv, ln_post = _norm("ln_kv", d), _norm("ln_post", d)
    query = tensor("query", (c.query_num, d))
    v_bias, out_bias = tensor("v_proj_bias", (d,)), tensor("out_proj_bias", (d,))
    parameters = [features, key_positions, *kv_proj.parameters, *ln_kv, query, *k_proj.parameters]
    parameters += [*v_proj.parameters, v_bias, *out_proj.parameters, out_bias]
    parameters += [*ln_post, *proj.parameters]
    norm = rows.layer_norm(d, c.norm_eps)
    with graph.function("resampler", parameters, {PATCHES: most_patches}):
        kv = kv_proj.linear(graph, Linear(rows=d, columns=c.kv_dim), features)
        kv = Rows(norm, (kv, *ln_kv)).write(graph)  # for two matrices
        keys = Linear(rows=d, columns=d, residual=1.0)
        k = k_proj.linear(graph, keys, kv, key_positions)
        biased = Linear(rows=d, columns=d, bias=True)
        v = v_proj.linear(graph, biased, kv, v_bias)
        heads = [Heads(d)] * 3
        size = (c.num_heads, c.head_dim, most_patches)
        # Its few queries cost nothing, and nothing after them hides what they lose.
        attend = _attention(graph.products, *size, *heads, rounded=False)
        mixed = graph.call(attend, [query, k, v], query.ty)
        x = out_proj.linear(graph, biased, mixed, out_bias)
        normed = Rows(norm, (x, *ln_post))
        graph.finish(proj.linear(graph, Linear(rows=d, columns=d), normed))


def key_positions(graph: Graph, c: ResamplerConfig, formats: Formats) -> None:
    """Adds the function (columns (C, D/2), rows (R, D/2), column, row, bias) -> (C * R, D).

    What a grid's positions add to the resampler's keys, row by row, for images of several shapes.
    The first two encode the numbers of the columns and of the rows, as
    `convert.checkpoint.positions.sincos_grid` does; `column` and `row` are matrices.
    """
    d, half = c.embed_dim, c.embed_dim // 2
    across, down = variable("columns"), variable("rows")
    columns, lines = tensor("columns", (across, half)), tensor("rows", (down, half))
    column, row = (
        formats.matrix(f"resampler.key_{n}_proj.weight", d, half) for n in ("column", "row")
    )
    bias = tensor("bias", (d,))
    parameters = [columns, lines, *column.parameters, *row.parameters, bias]
    with graph.function("key_positions", parameters):
        x = column.linear(graph, Linear(rows=d, columns=half), columns)
        y = row.linear(graph, Linear(rows=d, columns=half, bias=True), lines, bias)
        graph.finish(graph.call(rows.grid_sums(d), [x, y], tensor_type((across * down, d))))


def _attention(
    by: Products,
    heads: int,
    head_dim: int,
    most: int,
    q: Heads,
    k: Heads,
    v: Heads,
    *,
    rounded: bool,
) -> Expr:
    """Makes the fastest kernel for a processor. Callers must not pass more than `most` keys.

    Args:
        by: how the processor multiplies.
        heads: their number.
        head_dim: a head's width.
        most: keys.
        q: where a row of the first argument holds its heads.
        k: where a row of the second argument holds its heads.
        v: where a row of the third argument holds its heads.
        rounded: whether the linears beside it round to int8, too.
    """
    if rounded and by.several is not None and head_dim <= MAX_HEAD_DIM:
        return byte_attention(heads, head_dim, q, k, v, by.several, most)
    if by.pairs is not None and head_dim <= MAX_HEAD_DIM and head_dim % 2 == 0:
        return word_attention(heads, head_dim, q, k, v, by.pairs, most)
    return attention(heads, head_dim, q, k, v, block=by.queries)


def _norm(name: str, width: int) -> list[Expr]:
    return [tensor(f"{name}_{part}", (width,)) for part in ("weight", "bias")]
