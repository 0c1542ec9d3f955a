"""A model of the bundle's arithmetic: the reference, rounded where a bundle rounds.

It is built from the full-precision checkpoint and the recipe alone, in other code than the
bundle's kernels: quantized weights, int8 activations per group, float16 norms, the KV cache of
the plan. Only what calibration chose comes from the bundle; see
`runtime.verify.files.stored_weights`. What this model loses against the reference is the cost of
the recipe; a bundle that loses more has a fault.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convert.bundle.kv_cache import INT8
from convert.bundle.plan import Plan
from convert.support.progress import Progress, silent
from quantize.activations import MAX_INT8
from quantize.fast import quantize_groups_fast, quantize_int8_fast
from quantize.int8 import INT8_GROUP, quantize_int8
from quantize.schemes import Array, GroupScheme, quantize_groups
from runtime.reference.decoder import RMSNorm
from runtime.reference.kv_cache import KVCache
from runtime.reference.lazy_weights import (
    GroupCodes,
    LazyEmbedding,
    LazyLinear,
    Weight,
    multiply,
    row_blocks,
)
from runtime.reference.model import MiniCPMV
from runtime.reference.parallel import parallel_map
from runtime.reference.resampler import CrossAttention, Resampler
from runtime.reference.vision import VisionAttention, VisionEncoder

# The decoder's linears, by the names of the bundle's tensors that hold them.
STACKS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
LOADING = "load the models"  # the stage in which models are rounded
_CHUNK_VALUES = 1 << 16  # quantized at once: numpy's temporaries fit the second-level cache
# Of int8 attention: the keys whose values share a step, in units, and the largest weight.
_MOST_KEYS, _UNIT, _WEIGHT_CODES = 256, 32, 2**14 - 1
_VISION = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}


class Inputs(Enum):
    """How a linear of quantized weights takes its inputs."""

    INT8 = "int8"  # rounded per group, as a bundle's kernels do
    FLOAT = "float"  # as they are: MLC-LLM's kernels


class QuantizedLinear(nn.Module):
    """A linear of quantized weights times activations, rounded to int8 per group or as they are."""

    def __init__(self, weight: Weight, group_size: int | None, bias: Tensor | None = None) -> None:
        """Makes one.

        Args:
            weight: (N, K) as codes, or already rounded by the scheme.
            group_size: of the activations that are rounded; None: none is.
            bias: (N,) float32.
        """
        super().__init__()
        if isinstance(weight, Tensor):
            weight = nn.Parameter(weight, requires_grad=False)
        self.weight = weight
        self.bias = bias
        self.group_size = group_size

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., K) to (..., N)."""
        if self.group_size is not None:
            x = round_to_int8(x, self.group_size)
        return multiply(x, self.weight, self.bias)


class CutPatches(nn.Module):
    """The patch embedding as a linear over cut patches, in place of a convolution."""

    def __init__(self, linear: nn.Module, patch_size: int) -> None:
        """Args: linear: from a patch's pixels (c, y, x)."""
        super().__init__()
        self.linear, self.patch_size = linear, patch_size

    def forward(self, pixels: Tensor) -> Tensor:
        """Maps pixels (B, 3, height, width) to (B, D, height/p, width/p)."""
        patches = F.unfold(pixels, self.patch_size, stride=self.patch_size).transpose(1, 2)
        shape = tuple(side // self.patch_size for side in pixels.shape[-2:])
        embedded: Tensor = self.linear(patches).transpose(1, 2)
        return embedded.unflatten(-1, shape)  # type: ignore[no-untyped-call, no-any-return]


class RoundedAttention(nn.Module):
    """A vision block's attention with int8 products: see `convert/blocks/byte_attention.py`."""

    def __init__(self, full: VisionAttention) -> None:
        """Args: full: whose projections are used, rounded already."""
        super().__init__()
        self.full = full

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, P, D) to (B, P, D)."""
        heads = self.full.qkv(x).chunk(3, dim=-1)
        q, k, v = (t.unflatten(-1, (self.full.num_heads, -1)).transpose(1, 2) for t in heads)
        width, keys = q.shape[-1], k.shape[-2]
        q, k = round_to_int8(q, width), round_to_int8(k - k.mean(-2, keepdim=True), width)
        groups = -(-keys // _MOST_KEYS)
        v = round_to_int8(v.mT, -(-keys // (groups * _UNIT)) * _UNIT).mT
        scores = q @ k.mT * width**-0.5
        weights = ((scores - scores.amax(-1, keepdim=True)).exp() * _WEIGHT_CODES).round()
        mixed = weights @ v / weights.sum(-1, keepdim=True)
        out: Tensor = self.full.proj(mixed.transpose(1, 2).flatten(-2))
        return out


class AxesLinear(nn.Module):
    """The projection of the keys' positions for any shape: one linear for each axis."""

    def __init__(self, columns: nn.Module, rows: nn.Module, bias: Tensor) -> None:
        """Args: columns, rows: take the first and the second half of a position."""
        super().__init__()
        self.columns, self.rows, self.bias = columns, rows, bias

    def forward(self, positions: Tensor) -> Tensor:
        """Maps (..., D) to (..., D)."""
        x, y = positions.chunk(2, dim=-1)
        out: Tensor = self.columns(x) + self.rows(y) + self.bias
        return out


class FoldedCrossAttention(nn.Module):
    """The resampler's attention as a bundle has it: what no picture changes is folded, unrounded.

    That is the projection of the queries, and of the keys' positions where all images have one
    shape.
    """

    def __init__(
        self, full: CrossAttention, k_proj: nn.Module, v_proj: nn.Module, axes: AxesLinear | None
    ) -> None:
        """Makes it of the attention's parts.

        Args:
            full: whose queries' projection is used.
            k_proj: as it is stored, and so the others.
            v_proj: with its bias.
            axes: of the keys' positions; None: they are folded.
        """
        super().__init__()
        self.full, self.k_proj, self.v_proj, self.axes = full, k_proj, v_proj, axes

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Maps query (Q, D), key and value (B, P, D) to (B, Q, D); key - value are positions."""
        (wq, wk, _), (bq, bk, _) = (
            t.chunk(3) for t in (self.full.in_proj_weight, self.full.in_proj_bias)
        )
        q = F.linear(query, wq, bq).expand(len(value), -1, -1)
        positions = key - value
        projected = F.linear(positions, wk, bk) if self.axes is None else self.axes(positions)
        k = self.k_proj(value) + projected
        heads = (t.unflatten(-1, (self.full.num_heads, -1)) for t in (q, k, self.v_proj(value)))
        mixed = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in heads))
        out: Tensor = self.full.out_proj(mixed.transpose(1, 2).flatten(-2))
        return out


class RoundedKVCache(KVCache):
    """A KV cache that stores what a bundle's does: see `round_cached`."""

    def __init__(self, kv: str, num_layers: int, *, window: int, pinned: int) -> None:
        """Args: kv: a key of `convert.bundle.kv_cache.KV_FORMATS`. The rest: see `KVCache`."""
        super().__init__(num_layers, window=window, pinned=pinned)
        self._kv = kv

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Rounds what is added; see `KVCache`."""
        return super().append(layer, *(round_cached(x, self._kv) for x in (k, v)))


def round_cached(x: Tensor, kv: str) -> Tensor:
    """Returns what a cache of a kind gives back for rotated keys, or values (..., head_dim)."""
    return round_to_int8(x, x.shape[-1]) if kv == INT8 else x.half().to(x.dtype)


def round_to_int8(x: Tensor, group_size: int) -> Tensor:
    """Rounds groups of activations (..., K) to multiples of max|x| / 127; the last may be short."""
    padded = F.pad(x, (0, -x.shape[-1] % group_size))
    groups = padded.unflatten(-1, (-1, group_size))  # type: ignore[no-untyped-call]
    scale = groups.abs().amax(-1, keepdim=True) / MAX_INT8
    rounded = torch.where(scale != 0, (groups / scale).round() * scale, 0)  # NaN stays NaN
    out: Tensor = rounded.flatten(-2)[..., : x.shape[-1]]
    return out


def round_to_format(weight: Tensor, format: str, scheme: GroupScheme, name: str) -> Tensor:
    """Stores a weight in a format of a plan by plain rounding, and gives it back as float32."""
    return hold_in_format(weight, format, scheme, name).float()


def hold_in_format(
    weight: Tensor, format: str, scheme: GroupScheme, name: str, *, fast: bool = False
) -> Weight:
    """Rounds a weight to a format of a plan by plain rounding, and keeps it as that has it.

    Args:
        weight: of any float dtype; (N, K) for the formats of codes.
        format: a format of a plan.
        scheme: of the 4-bit format.
        name: the tensor, for messages.
        fast: the same bits from `quantize.fast`, which is what convert rounds with.
    """
    if format == "q4":
        four = quantize_groups_fast if fast else quantize_groups
        return _in_groups(weight, lambda rows: four(rows, scheme, name=name), scheme.zero_point)
    if format == "q8":
        eight = quantize_int8_fast if fast else quantize_int8
        return _in_groups(weight, lambda rows: eight(rows, name=name), 0)
    return weight if format == "f32" else weight.half()


def _in_groups(
    weight: Tensor,
    quantize: Callable[[Array], tuple[Array, Array]],
    zero_point: int,
) -> GroupCodes:
    """Quantizes runs of rows that fit the processor's cache."""
    half = weight.detach().cpu().half().numpy()
    count, columns = half.shape

    def one(rows: slice) -> tuple[Array, Array]:
        codes, scale = quantize(half[rows])
        return codes.astype(np.int8) - np.int8(zero_point), scale.astype(np.float32)

    parts = [one(rows) for rows in row_blocks(count, columns, _CHUNK_VALUES)]
    codes, scale = (torch.from_numpy(np.concatenate(side)) for side in zip(*parts, strict=True))
    return GroupCodes(codes, scale, columns)


def linear_of(
    weight: Weight,
    format: str,
    scheme: GroupScheme,
    bias: Tensor | None = None,
    *,
    inputs: Inputs = Inputs.INT8,
) -> nn.Module:
    """Makes a linear as kernels compute it.

    Args:
        weight: (N, K), as its format has it.
        format: a format of a plan.
        scheme: of the 4-bit format.
        bias: (N,) float32.
        inputs: how `q4` and `q8` take their inputs.
    """
    if isinstance(weight, GroupCodes):
        group = scheme.group_size if format == "q4" else INT8_GROUP
        return QuantizedLinear(weight, group if inputs == Inputs.INT8 else None, bias)
    out = LazyLinear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    out.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        out.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return out


class _Rounding:
    """Replaces linears by what a plan makes of them."""

    def __init__(self, plan: Plan, inputs: Inputs) -> None:
        self._inputs = inputs
        self._formats = {tensor.name: tensor.format for tensor in plan.tensors}
        self._scheme = plan.recipe.scheme

    def linear(self, name: str, weight: Tensor, bias: Tensor | None = None) -> nn.Module:
        """Makes the linear of a bundle's tensor from (some rows of) it."""
        rounded = self.rounded(name, weight)
        return linear_of(rounded, self._formats[name], self._scheme, bias, inputs=self._inputs)

    def rounds(self, name: str) -> bool:
        """Whether a tensor's linear rounds its inputs."""
        return self._inputs == Inputs.INT8 and self._formats[name] in ("q4", "q8")

    def rounded(self, name: str, weight: Tensor) -> Weight:
        kept = self._formats[name]
        return hold_in_format(weight.detach(), kept, self._scheme, name, fast=True)

    def axes(self, weight: Tensor, bias: Tensor) -> AxesLinear | None:
        """Makes the projection of the keys' positions (D, D); None if the bundle folds it."""
        names = [f"resampler.key_{axis}_proj.weight" for axis in ("column", "row")]
        if names[0] not in self._formats:
            return None
        halves = weight.chunk(2, dim=1)
        columns, rows = (self.linear(*pair) for pair in zip(names, halves, strict=True))
        return AxesLinear(columns, rows, bias)

    def replace(self, parent: nn.Module, path: str, name: str) -> None:
        old = parent.get_submodule(path)
        assert isinstance(old, nn.Linear)
        above, _, child = path.rpartition(".")
        setattr(parent.get_submodule(above), child, self.linear(name, old.weight, old.bias))


@torch.no_grad()
def apply_arithmetic(
    model: MiniCPMV,
    plan: Plan,
    *,
    stored: bool = False,
    progress: Progress = silent,
    inputs: Inputs = Inputs.INT8,
    int8_attention: bool = False,
) -> MiniCPMV:
    """Rounds a reference model in place, and returns it.

    Args:
        model: full precision.
        plan: how each tensor is stored.
        stored: the decoder's matrices are as a bundle stores them: see
            `runtime.verify.files.stored_weights`.
        progress: counts the decoder's layers.
        inputs: how linears of quantized weights take their inputs.
        int8_attention: attention of vision blocks multiplies int8, between linears that do.
    """
    rounding, stack = _Rounding(plan, inputs), model.llm.model
    for module in stack.modules():
        if isinstance(module, RMSNorm):
            module.weight.copy_(module.weight.half())
    if not stored:

        def one(index: int) -> None:
            for name, paths in STACKS.items():
                for path in paths:
                    rounding.replace(stack.layers[index], path, f"llm.layers.{index}.{name}")

        count = len(stack.layers)
        parallel_map(one, range(count), lambda index: progress(LOADING, index + 1, count))
        set_embeddings(model, plan, rounding.rounded, inputs=inputs)
    return apply_vision_arithmetic(model, plan, inputs, int8_attention=int8_attention)


def set_embeddings(
    model: MiniCPMV,
    plan: Plan,
    hold: Callable[[str, Tensor], Weight],
    *,
    inputs: Inputs = Inputs.INT8,
) -> None:
    """Gives a decoder the token embeddings and the head of a plan, tied or not.

    Args:
        model: whose decoder it is.
        plan: how they are stored.
        hold: makes them from a tensor's name and what the model has now.
        inputs: how the head takes its inputs.
    """
    formats = {tensor.name: tensor.format for tensor in plan.tensors}
    stack, head = model.llm.model, model.llm.lm_head.weight
    name = "llm.head" if "llm.head" in formats else "llm.embed"
    embedding = hold("llm.embed", stack.embed_tokens.weight)
    weight = hold(name, head) if name == "llm.head" else embedding
    stack.embed_tokens = LazyEmbedding(embedding)  # type: ignore[assignment]
    linear = linear_of(weight, formats[name], plan.recipe.scheme, inputs=inputs)
    model.llm.lm_head = linear  # type: ignore[assignment]


@torch.no_grad()
def apply_vision_arithmetic(
    model: MiniCPMV,
    plan: Plan,
    inputs: Inputs = Inputs.INT8,
    *,
    int8_attention: bool = False,
) -> MiniCPMV:
    """Rounds a reference model's vision encoder and resampler, if any, in place; returns it."""
    if model.vpm is not None and model.resampler is not None:
        rounding = _Rounding(plan, inputs)
        _round_vision(model.vpm, rounding, int8_attention=int8_attention)
        _round_resampler(model.resampler, rounding)
    return model


def _round_vision(encoder: VisionEncoder, rounding: _Rounding, *, int8_attention: bool) -> None:
    embed = encoder.patch_embed.proj
    name, matrix = "vision.patch_embed.weight", embed.weight.flatten(1)
    linear = rounding.linear(name, matrix, embed.bias)
    encoder.patch_embed.proj = CutPatches(linear, embed.kernel_size[0])  # type: ignore[assignment]
    for i, block in enumerate(encoder.blocks):
        for name, path in _VISION.items():
            rounding.replace(block, path, f"vision.blocks.{i}.{name}.weight")
        names = (f"vision.blocks.{i}.{name}.weight" for name in ("qkv", "proj"))
        if int8_attention and all(map(rounding.rounds, names)):
            full = block.attn
            assert isinstance(full, VisionAttention)
            block.attn = RoundedAttention(full)


def _round_resampler(resampler: Resampler, rounding: _Rounding) -> None:
    attention = resampler.attn
    (_, wk, wv), (_, bk, bv) = (
        t.chunk(3) for t in (attention.in_proj_weight, attention.in_proj_bias)
    )
    rounding.replace(resampler, "kv_proj", "resampler.kv_proj.weight")
    rounding.replace(attention, "out_proj", "resampler.out_proj.weight")
    resampler.attn = FoldedCrossAttention(  # type: ignore[assignment]
        attention,
        rounding.linear("resampler.k_proj.weight", wk),
        rounding.linear("resampler.v_proj.weight", wv, bv),
        rounding.axes(wk, bk),
    )
    proj = rounding.linear("resampler.proj.weight", resampler.proj.T.contiguous())
    resampler.ln_post = nn.Sequential(resampler.ln_post, proj)  # type: ignore[assignment]
    resampler.proj.copy_(torch.eye(len(resampler.proj)))
