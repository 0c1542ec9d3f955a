"""A model of a bundle's arithmetic, computed from the tensors that the bundle really stores.

Where an engine says something else, a kernel or a rule is wrong; where it says the same and the
reference does not, the tensors are. Every rule that an engine may get wrong can be bent here, so
that the mistake which explains an engine's output can be named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from convert.bundle.plan import Plan
from convert.checkpoint.config import DecoderConfig, ModelConfig, ResamplerConfig, VisionConfig
from convert.checkpoint.positions import (
    interpolate_grid,
    resample_grid,
    sincos_grid,
    square_side,
)
from quantize.int8 import INT8_GROUP
from quantize.schemes import Array
from runtime.reference.arithmetic import round_cached, round_to_int8
from runtime.reference.lazy_weights import GroupCodes, multiply
from runtime.verify.files.weights import decode_tensor, hold_stored
from runtime.verify.stages import Shape, shape_of


@dataclass(frozen=True, kw_only=True)
class Deviations:
    """What the configuration does not say; the defaults are right."""

    rotation: Literal["halves", "neighbours", "backwards", "none"] = "halves"
    window: int = 0  # tokens that a query sees more than it should
    slides: bool = True  # false: nothing is ever forgotten
    pins: bool = True  # false: the first tokens are forgotten like others
    far: bool = True  # false: the distance to pinned tokens grows without end
    memory: int | None = None  # tokens after which the cache is empty again, and again
    lost: int | None = None  # the first tokens, which no later one finds in the cache
    gelu: Literal["none", "tanh"] = "none"  # approximation
    positions: bool = True  # of patches, and of the resampler's keys
    interpolated_keys: bool = False  # positions of keys from the queries', as without slices


class StoredStages:
    """The stages of `runtime.verify.stages.Stages` from a bundle's tensors, without a picture's.

    Tensors are decoded when they are needed, so that one layer of a large model costs one layer.
    """

    def __init__(
        self,
        config: ModelConfig,
        plan: Plan,
        weights: Mapping[str, Array],
        *,
        rules: Deviations | None = None,
    ) -> None:
        """Args: config: what to compute. plan, weights: of the bundle. rules: by default right."""
        self.config, self.rules = config, rules or Deviations()
        self._plan, self._weights = plan, weights
        self._tensors = {tensor.name: tensor for tensor in plan.tensors}

    def with_rules(self, rules: Deviations) -> StoredStages:
        """Returns the same tensors under other rules."""
        return StoredStages(self.config, self._plan, self._weights, rules=rules)

    def with_config(self, config: ModelConfig) -> StoredStages:
        """Returns the same tensors under another configuration of the same shapes."""
        return StoredStages(config, self._plan, self._weights, rules=self.rules)

    @torch.inference_mode()
    def vision_embed(self, pixels: Tensor) -> Tensor:
        """Maps an image's pixels (3, height, width) to patches with positions (P, D)."""
        patch = self._vision.patch_size
        patches = F.unfold(pixels.unsqueeze(0), patch, stride=patch)[0].T
        x = self._dense("vision.patch_embed", patches)
        if not self.rules.positions:
            return x
        table = self._tensor("vision.pos_embed")
        if self._vision.slices is None:
            return x + table
        return x + resample_grid(table.unsqueeze(0), *shape_of(pixels, self.config))[0]

    @torch.inference_mode()
    def vision_block(self, index: int, x: Tensor) -> Tensor:
        """Runs one block on (P, D)."""
        c, at = self._vision, f"vision.blocks.{index}"
        qkv = self._dense(f"{at}.qkv", self._layer_norm(f"{at}.norm1", x, c.norm_eps))
        q, k, v = (_heads(part, c.num_heads) for part in qkv.chunk(3, dim=-1))
        x = x + self._dense(f"{at}.proj", _joined(F.scaled_dot_product_attention(q, k, v)))
        hidden = self._dense(f"{at}.fc1", self._layer_norm(f"{at}.norm2", x, c.norm_eps))
        return x + self._dense(f"{at}.fc2", F.gelu(hidden, approximate=self.rules.gelu))

    @torch.inference_mode()
    def vision_norm(self, x: Tensor) -> Tensor:
        """Maps (P, D) to features (P, D)."""
        return self._layer_norm("vision.norm", x, self._vision.norm_eps)

    @torch.inference_mode()
    def resample(self, features: Tensor, shape: Shape) -> Tensor:
        """Maps features (P, Dv) of an image with a shape to image tokens (Q, D)."""
        c, at = self._resampler, "resampler"
        kv = self._layer_norm(f"{at}.ln_kv", self._dense(f"{at}.kv_proj", features), c.norm_eps)
        k = self._dense(f"{at}.k_proj", kv)
        if self.rules.positions:
            k = k + self._key_positions(shape)
        parts = self._tensor(f"{at}.query"), k, self._dense(f"{at}.v_proj", kv)
        q, k, v = (_heads(part, c.num_heads) for part in parts)
        x = self._dense(f"{at}.out_proj", _joined(F.scaled_dot_product_attention(q, k, v)))
        return self._dense(f"{at}.proj", self._layer_norm(f"{at}.ln_post", x, c.norm_eps))

    @torch.inference_mode()
    def embed(self, ids: Sequence[int]) -> Tensor:
        """Maps token ids to scaled embeddings (L, D)."""
        table = hold_stored(self._weights, self._tensors["llm.embed"], self._plan.recipe.scheme)
        return table[torch.tensor(list(ids))].float() * self.config.decoder.scale_emb

    @torch.inference_mode()
    def layer(self, index: int, x: Tensor, window: int, pinned: int) -> Tensor:
        """Runs one decoder layer on a whole conversation (L, D)."""
        c, at = self.config.decoder, f"llm.layers.{index}"
        qkv = self._linear(f"{at}.qkv", self._rms_norm(f"{at}.input_norm.weight", x))
        widths = [c.hidden_size, c.kv_dim, c.kv_dim]
        counts = (c.num_attention_heads, c.num_key_value_heads, c.num_key_value_heads)
        parts = torch.split(qkv, widths, dim=-1)
        q, k, v = (_heads(part, count) for part, count in zip(parts, counts, strict=True))
        x = x + c.residual_scale * self._linear(f"{at}.o", self._attend(q, k, v, window, pinned))
        both = self._linear(f"{at}.gate_up", self._rms_norm(f"{at}.post_norm.weight", x))
        gates, values = both.chunk(2, dim=-1)
        return x + c.residual_scale * self._linear(f"{at}.down", F.silu(gates) * values)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Maps hidden states (L, D) to logits (L, V)."""
        head = "llm.head" if "llm.head" in self._tensors else "llm.embed"
        normed = self._rms_norm("llm.norm.weight", hidden)
        return self._linear(head, normed / self.config.decoder.logits_divisor)

    @property
    def _vision(self) -> VisionConfig:
        assert self.config.vision is not None, "a decoder-only model"
        return self.config.vision

    @property
    def _resampler(self) -> ResamplerConfig:
        assert self.config.resampler is not None, "a decoder-only model"
        return self.config.resampler

    def _key_positions(self, shape: Shape) -> Tensor:
        """Returns the keys' positions (P, D), projected; the bias is k_proj's where it has one."""
        if self._vision.slices is None:
            return self._tensor("resampler.key_positions")
        c = self._resampler
        table = sincos_grid(c.embed_dim, *shape)
        if self.rules.interpolated_keys:
            side = square_side(c.query_num)
            table = interpolate_grid(sincos_grid(c.embed_dim, side, side), *shape)
        axes = zip(("column", "row"), table.chunk(2, dim=-1), strict=True)
        x, y = (self._linear(f"resampler.key_{axis}_proj.weight", half) for axis, half in axes)
        return x + y

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, window: int, pinned: int) -> Tensor:
        """Maps heads (H, L, head_dim) to (L, D); the window is `runtime.reference.kv_cache`'s."""
        c, rules = self.config.decoder, self.rules
        index = torch.arange(q.shape[1])
        pair = (_rotate(k, index, c, rules.rotation), v)
        k, v = (round_cached(t, self._plan.kv) for t in pair)
        groups = c.num_attention_heads // c.num_key_value_heads
        k, v = (t.repeat_interleave(groups, dim=0) for t in (k, v))
        scores = _rotate(q, index, c, rules.rotation) @ k.mT
        width = window + rules.window if rules.slides else len(index) + window
        if rules.far:
            far = _rotate(q, index.clamp(max=width - 1), c, rules.rotation) @ k.mT
            scores = torch.where(index < pinned, far, scores)
        query, key = index.unsqueeze(1), index.unsqueeze(0)
        kept = key > query - (width - pinned)
        if rules.pins:
            kept = kept | (key < pinned)
        seen = kept & (key <= query)
        if rules.memory is not None:
            seen = seen & (key // rules.memory == query // rules.memory)
        if rules.lost is not None:
            seen = seen & ((query < rules.lost) | (key >= rules.lost))
        weights = (scores * c.head_dim**-0.5).masked_fill(~seen, -math.inf).softmax(-1)
        return _joined(weights @ v)

    def _tensor(self, name: str) -> Tensor:
        return decode_tensor(self._weights, self._tensors[name], self._plan.recipe.scheme)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        tensor, scheme = self._tensors[name], self._plan.recipe.scheme
        weight = hold_stored(self._weights, tensor, scheme)
        if isinstance(weight, GroupCodes):
            size = scheme.group_size if tensor.format == "q4" else INT8_GROUP
            x = round_to_int8(x, size)
        return multiply(x, weight)

    def _dense(self, name: str, x: Tensor) -> Tensor:
        product = self._linear(f"{name}.weight", x)
        return (
            product + self._tensor(f"{name}.bias") if f"{name}.bias" in self._tensors else product
        )

    def _layer_norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        weight, bias = (self._tensor(f"{name}.{part}") for part in ("weight", "bias"))
        return F.layer_norm(x, weight.shape, weight, bias, eps)

    def _rms_norm(self, name: str, x: Tensor) -> Tensor:
        eps = self.config.decoder.rms_norm_eps
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * self._tensor(name)


def _heads(x: Tensor, count: int) -> Tensor:
    """Splits (L, D) into `count` heads (H, L, D / H)."""
    heads: Tensor = x.unflatten(-1, (count, -1))  # type: ignore[no-untyped-call]
    return heads.transpose(0, 1)


def _joined(heads: Tensor) -> Tensor:
    """Reverses `_heads`."""
    return heads.transpose(0, 1).flatten(-2)


def _rotate(x: Tensor, index: Tensor, c: DecoderConfig, rotation: str) -> Tensor:
    """Rotates heads (H, L, head_dim) to positions (L,)."""
    if rotation == "none":
        return x
    steps = torch.arange(0, c.head_dim, 2, dtype=torch.float64) / c.head_dim
    angles = index.double().unsqueeze(-1) * c.rope_theta**-steps
    if rotation == "backwards":
        angles = -angles
    cos, sin = angles.cos().float(), angles.sin().float()
    if rotation == "neighbours":
        a, b = x[..., ::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
