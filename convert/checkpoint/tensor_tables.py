"""The weight tables: the tensors of a checkpoint, and what they become.

`sources` lists a checkpoint's tensors, `drops` what is left out and why. `reference_rules` make
the parameters of `runtime.reference.model.MiniCPMV`, `bundle_rules` the tensors of a bundle.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING

from convert.checkpoint.config import DecoderConfig, ModelConfig, ResamplerConfig, VisionConfig
from convert.checkpoint.positions import resample_grid
from convert.checkpoint.transforms import (
    flatten_patches,
    half_inputs,
    project_key_positions,
    project_queries,
    resample_positions,
    same,
    stack_rows,
    third,
    trained_positions,
    transpose,
)
from quantize.errors import CheckpointError, ShapeError

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]
EMBEDDING, HEAD = "llm.model.embed_tokens.weight", "llm.lm_head.weight"
ANY_GRID = -1  # in a shape: any square number


@dataclass(frozen=True)
class Rule:
    """One artifact tensor: made from `sources` by `transform`, which gets them in that order."""

    name: str
    sources: tuple[str, ...]  # names in the checkpoint
    shape: Shape  # of the artifact tensor
    transform: Callable[..., Tensor] = same

    def make(self, read: Callable[[str], Tensor]) -> Tensor:
        """Reads the sources and returns the artifact tensor in float32.

        Raises:
            CheckpointError: the weights hold infinities or NaN.
            ShapeError: the transform's result has another shape than the table says.
        """
        return self.make_as_stored(read).float()

    def make_as_stored(self, read: Callable[[str], Tensor]) -> Tensor:
        """Does the same, and returns what the transform makes of the stored types."""
        made = self.transform(*(read(source) for source in self.sources))
        if made.shape != self.shape:
            raise ShapeError(f"{self.name} became {list(made.shape)}; expected {list(self.shape)}")
        lowest, highest = made.aminmax()  # a NaN anywhere makes both NaN
        if not (lowest.isfinite() and highest.isfinite()):
            raise CheckpointError(
                f"{', '.join(self.sources)}: holds NaN or infinity; the checkpoint is damaged"
            )
        return made


@dataclass(frozen=True)
class Drop:
    """Checkpoint tensors that are left out: names that match `pattern` (with `*`), and why."""

    pattern: str
    reason: str

    def matches(self, name: str) -> bool:
        """Says whether this row leaves out the tensor."""
        return fnmatchcase(name, self.pattern)


Table = tuple[Rule | Drop, ...]


def shape_fits(shape: Shape, expected: Shape) -> bool:
    """Compares shapes; `ANY_GRID` stands for any square number."""
    return len(shape) == len(expected) and all(
        (n > 0 and math.isqrt(n) ** 2 == n) if e == ANY_GRID else n == e
        for n, e in zip(shape, expected, strict=True)
    )


def sources(config: ModelConfig) -> dict[str, Shape]:
    """Returns every tensor that a checkpoint must hold, by name; `HEAD` it may hold too."""
    shapes = _decoder_sources(config.decoder)
    if config.vision is not None and config.resampler is not None:
        shapes |= _vision_sources(config.vision) | _resampler_sources(config.resampler)
    return shapes


def drops(config: ModelConfig, untied_head: bool) -> tuple[Drop, ...]:
    """Returns which tensors a checkpoint may hold that are left out."""
    rotary = "llm.model.layers.*.self_attn.rotary_emb.inv_freq"
    rows = [Drop(rotary, "recomputed from rope_theta")]
    if not untied_head:
        rows.append(Drop(HEAD, "equals the token embedding"))
    if config.vision is not None:
        rows.append(Drop("vpm.attn_pool.*", "the resampler takes the place of the pooling"))
        if config.source.get("drop_vision_last_layer") is not False:
            block = f"vpm.blocks.{config.vision.depth}.*"
            rows.append(Drop(block, "drop_vision_last_layer: the last block does not run"))
    return tuple(rows)


def reference_rules(config: ModelConfig, untied_head: bool) -> Table:
    """Makes the state dict of `MiniCPMV`; a tied head is not listed apart from the embedding."""
    shapes = sources(config)
    if untied_head:
        shapes[HEAD] = shapes[EMBEDDING]
    rules = []
    for name, shape in shapes.items():
        if ANY_GRID in shape and config.vision is not None:
            side = config.vision.grid
            resampled = tuple(side**2 if n == ANY_GRID else n for n in shape)
            transform = partial(resample_grid, rows=side, columns=side)
            rules.append(Rule(name, (name,), resampled, transform))
        else:
            rules.append(Rule(name, (name,), shape))
    return (*rules, *drops(config, untied_head))


def bundle_rules(config: ModelConfig, untied_head: bool) -> Table:
    """Makes a bundle's tensors, before quantization; linears are (N, K), outputs by inputs.

    Positions of images of one shape are finished. Of several shapes (slices) the table holds what
    they are made from: the trained positions, and the matrices that the keys' positions meet.
    """
    rules: list[Rule] = []
    if config.vision is not None and config.resampler is not None:
        rules += _vision_rules(config.vision)
        rules += _resampler_rules(config.resampler, config.vision)
    rules += _decoder_rules(config.decoder, untied_head)
    return (*rules, *drops(config, untied_head))


def _decoder_sources(c: DecoderConfig) -> dict[str, Shape]:
    width, hidden = c.hidden_size, c.intermediate_size
    shapes: dict[str, Shape] = {EMBEDDING: (c.vocab_size, width)}
    for i in range(c.num_hidden_layers):
        layer = f"llm.model.layers.{i}"
        shapes |= {
            f"{layer}.input_layernorm.weight": (width,),
            f"{layer}.self_attn.q_proj.weight": (width, width),
            f"{layer}.self_attn.k_proj.weight": (c.kv_dim, width),
            f"{layer}.self_attn.v_proj.weight": (c.kv_dim, width),
            f"{layer}.self_attn.o_proj.weight": (width, width),
            f"{layer}.post_attention_layernorm.weight": (width,),
            f"{layer}.mlp.gate_proj.weight": (hidden, width),
            f"{layer}.mlp.up_proj.weight": (hidden, width),
            f"{layer}.mlp.down_proj.weight": (width, hidden),
        }
    return shapes | {"llm.model.norm.weight": (width,)}


def _vision_sources(c: VisionConfig) -> dict[str, Shape]:
    width, patch = c.embed_dim, c.patch_size
    # For slices they are kept as stored, and resampled to the grid of each image.
    positions = ANY_GRID if c.slices is None else c.trained_grid**2
    shapes: dict[str, Shape] = {
        "vpm.patch_embed.proj.weight": (width, 3, patch, patch),
        "vpm.patch_embed.proj.bias": (width,),
        "vpm.pos_embed": (1, positions, width),
    }
    for i in range(c.depth):
        block = f"vpm.blocks.{i}"
        shapes |= _with_bias(f"{block}.norm1", (width,))
        shapes |= _with_bias(f"{block}.attn.qkv", (3 * width, width))
        shapes |= _with_bias(f"{block}.attn.proj", (width, width))
        shapes |= _with_bias(f"{block}.norm2", (width,))
        shapes |= _with_bias(f"{block}.mlp.fc1", (c.mlp_hidden_dim, width))
        shapes |= _with_bias(f"{block}.mlp.fc2", (width, c.mlp_hidden_dim))
    return shapes | _with_bias("vpm.norm", (width,))


def _resampler_sources(c: ResamplerConfig) -> dict[str, Shape]:
    queries, width = c.query_num, c.embed_dim
    return {
        "resampler.query": (queries, width),
        "resampler.pos_embed": (queries, width),
        "resampler.proj": (width, width),
        "resampler.kv_proj.weight": (width, c.kv_dim),
        "resampler.attn.in_proj_weight": (3 * width, width),
        "resampler.attn.in_proj_bias": (3 * width,),
        **_with_bias("resampler.attn.out_proj", (width, width)),
        **_with_bias("resampler.ln_q", (width,)),
        **_with_bias("resampler.ln_kv", (width,)),
        **_with_bias("resampler.ln_post", (width,)),
    }


def _with_bias(name: str, weight: Shape) -> dict[str, Shape]:
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def _decoder_rules(c: DecoderConfig, untied_head: bool) -> list[Rule]:
    width, hidden = c.hidden_size, c.intermediate_size
    rules = [Rule("llm.embed", (EMBEDDING,), (c.vocab_size, width))]
    for i in range(c.num_hidden_layers):
        at, of = f"llm.layers.{i}", f"llm.model.layers.{i}"
        qkv = tuple(f"{of}.self_attn.{p}_proj.weight" for p in "qkv")
        gate_up = tuple(f"{of}.mlp.{p}_proj.weight" for p in ("gate", "up"))
        after = f"{of}.post_attention_layernorm.weight"
        rules += [
            Rule(f"{at}.input_norm.weight", (f"{of}.input_layernorm.weight",), (width,)),
            Rule(f"{at}.qkv", qkv, (width + 2 * c.kv_dim, width), stack_rows),
            Rule(f"{at}.o", (f"{of}.self_attn.o_proj.weight",), (width, width)),
            Rule(f"{at}.post_norm.weight", (after,), (width,)),
            Rule(f"{at}.gate_up", gate_up, (2 * hidden, width), stack_rows),
            Rule(f"{at}.down", (f"{of}.mlp.down_proj.weight",), (width, hidden)),
        ]
    rules.append(Rule("llm.norm.weight", ("llm.model.norm.weight",), (width,)))
    if untied_head:
        rules.append(Rule("llm.head", (HEAD,), (c.vocab_size, width)))
    return rules


def _vision_rules(c: VisionConfig) -> list[Rule]:
    width = c.embed_dim
    patches = "vpm.patch_embed.proj"
    rules = [
        Rule(
            "vision.patch_embed.weight",
            (f"{patches}.weight",),
            (width, c.patch_dim),
            flatten_patches,
        ),
        Rule("vision.patch_embed.bias", (f"{patches}.bias",), (width,)),
        _vision_positions(c),
    ]
    for i in range(c.depth):
        at, of = f"vision.blocks.{i}", f"vpm.blocks.{i}"
        rules += _both(f"{at}.norm1", f"{of}.norm1", (width,))
        rules += _both(f"{at}.qkv", f"{of}.attn.qkv", (3 * width, width))
        rules += _both(f"{at}.proj", f"{of}.attn.proj", (width, width))
        rules += _both(f"{at}.norm2", f"{of}.norm2", (width,))
        rules += _both(f"{at}.fc1", f"{of}.mlp.fc1", (c.mlp_hidden_dim, width))
        rules += _both(f"{at}.fc2", f"{of}.mlp.fc2", (width, c.mlp_hidden_dim))
    return rules + _both("vision.norm", "vpm.norm", (width,))


def _vision_positions(c: VisionConfig) -> Rule:
    name, sources = "vision.pos_embed", ("vpm.pos_embed",)
    if c.slices is not None:
        return Rule(name, sources, (c.trained_grid**2, c.embed_dim), trained_positions)
    resample = partial(resample_positions, grid=c.grid)
    return Rule(name, sources, (c.num_patches, c.embed_dim), resample)


def _resampler_rules(c: ResamplerConfig, vision: VisionConfig) -> list[Rule]:
    width, square = c.embed_dim, (c.embed_dim, c.embed_dim)
    at, positions = "resampler", "resampler.pos_embed"
    packed = (f"{at}.attn.in_proj_weight", f"{at}.attn.in_proj_bias")
    query = (f"{at}.query", f"{at}.ln_q.weight", f"{at}.ln_q.bias", positions, *packed)
    keys, values = partial(third, index=1), partial(third, index=2)
    queries = partial(project_queries, eps=c.norm_eps)
    return [
        Rule(f"{at}.query", query, (c.query_num, width), queries),
        Rule(f"{at}.kv_proj.weight", (f"{at}.kv_proj.weight",), (width, c.kv_dim)),
        *_both(f"{at}.ln_kv", f"{at}.ln_kv", (width,)),
        Rule(f"{at}.k_proj.weight", packed[:1], square, keys),
        *_key_positions(c, vision),
        Rule(f"{at}.v_proj.weight", packed[:1], square, values),
        Rule(f"{at}.v_proj.bias", packed[1:], (width,), values),
        *_both(f"{at}.out_proj", f"{at}.attn.out_proj", square),
        *_both(f"{at}.ln_post", f"{at}.ln_post", (width,)),
        Rule(f"{at}.proj.weight", (f"{at}.proj",), square, transpose),
    ]


def _key_positions(c: ResamplerConfig, vision: VisionConfig) -> list[Rule]:
    """Returns what positions and bias add to the keys, or what makes it for each shape."""
    at, width = "resampler", c.embed_dim
    packed = (f"{at}.attn.in_proj_weight", f"{at}.attn.in_proj_bias")
    if vision.slices is None:
        make = partial(project_key_positions, grid=vision.grid)
        shape = (vision.num_patches, width)
        return [Rule(f"{at}.key_positions", (f"{at}.pos_embed", *packed), shape, make)]
    column, row = (partial(half_inputs, index=i) for i in (0, 1))
    return [
        Rule(f"{at}.k_proj.bias", packed[1:], (width,), partial(third, index=1)),
        Rule(f"{at}.key_column_proj.weight", packed[:1], (width, width // 2), column),
        Rule(f"{at}.key_row_proj.weight", packed[:1], (width, width // 2), row),
    ]


def _both(name: str, source: str, weight: Shape) -> list[Rule]:
    shapes = _with_bias("", weight).items()
    return [Rule(name + part, (source + part,), shape) for part, shape in shapes]
