"""The bundle's arithmetic in numpy, on the tensors of a bundle: what compiled blocks must compute.

Quantized weights times int8 activations per group, float16 weights, a KV cache of float16 or of
int8 codes. Everything between is float64 here and float32 in the kernels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convert.bundle.plan import Plan
from convert.checkpoint.config import ModelConfig
from convert.checkpoint.positions import resample_grid, sincos_grid
from quantize.activations import multiply_codes, pad_groups, quantize_activations
from quantize.int8 import INT8_GROUP, dequantize_int8, quantize_int8
from quantize.layout import (
    pack_int8_tiles,
    pack_tiles,
    tile_f16,
    unpack_int8_tiles,
    unpack_tiles,
    untile_f16,
)
from quantize.schemes import GroupScheme, dequantize_groups, quantize_groups

Array = np.ndarray
SCHEME = GroupScheme.load("q4f16_1")
SIZE = SCHEME.group_size


def bundle_tensors(state: Mapping[str, Tensor], plan: Plan) -> dict[str, Array]:
    """Makes a bundle's tensors from a checkpoint's."""
    tensors: dict[str, Array] = {}
    for planned in plan.tensors:
        weight = planned.rule.make(state.__getitem__).contiguous().numpy()
        name, half = planned.name, weight.astype(np.float16)
        if planned.format == "q4":
            packed = pack_tiles(*quantize_groups(half, SCHEME, name=name), SCHEME)
        elif planned.format == "q8":
            packed = pack_int8_tiles(*quantize_int8(half, name=name))
        else:
            forms = {"f16_tiled": tile_f16, "f16": np.float16, "f32": np.float32}
            tensors[name] = forms[planned.format](weight)
            continue
        tensors[f"{name}.q_weight"], tensors[f"{name}.q_scale"] = packed
    return tensors


class NumpyModel:
    """The blocks, one method each, as in `runtime.compiled.CompiledModel`."""

    def __init__(self, config: ModelConfig, tensors: Mapping[str, Array], kv: str = "fp16") -> None:
        self.config, self._tensors, self._kv = config, tensors, kv

    def vision_embed(self, pixels: Array) -> Array:
        v = self.config.vision
        assert v is not None
        rows, columns = (side // v.patch_size for side in pixels.shape[1:])
        cut = pixels.reshape(3, rows, v.patch_size, columns, v.patch_size)
        patches = cut.transpose(1, 3, 0, 2, 4).reshape(rows * columns, v.patch_dim)
        embedded = self._dense("vision.patch_embed", v.embed_dim, patches)
        positions = torch.from_numpy(self._tensors["vision.pos_embed"]).unsqueeze(0)
        return embedded + resample_grid(positions, rows, columns)[0].numpy()

    def vision_block(self, i: int, x: Array) -> Array:
        v = self.config.vision
        assert v is not None
        at, d = f"vision.blocks.{i}", v.embed_dim
        qkv = self._dense(f"{at}.qkv", 3 * d, self._layer_norm(f"{at}.norm1", x, v.norm_eps))
        mixed = _attend(*(_heads(part, v.num_heads) for part in np.split(qkv, 3, axis=1)))
        x = x + self._dense(f"{at}.proj", d, mixed)
        normed = self._layer_norm(f"{at}.norm2", x, v.norm_eps)
        hidden = self._dense(f"{at}.fc1", v.mlp_hidden_dim, normed)
        erf = torch.erf(torch.from_numpy(hidden) * math.sqrt(0.5)).numpy()
        return x + self._dense(f"{at}.fc2", d, 0.5 * hidden * (1 + erf))

    def vision_norm(self, x: Array) -> Array:
        assert self.config.vision is not None
        return self._layer_norm("vision.norm", x, self.config.vision.norm_eps)

    def resample(self, features: Array, shape: tuple[int, int]) -> Array:
        c = self.config.resampler
        assert c is not None
        at, d = "resampler", c.embed_dim
        kv = self._dense(f"{at}.kv_proj", d, features)
        kv = self._layer_norm(f"{at}.ln_kv", kv, c.norm_eps)
        k = self._linear(f"{at}.k_proj.weight", d, kv) + self.key_positions(shape)
        v = self._dense(f"{at}.v_proj", d, kv)
        query = self._tensors[f"{at}.query"].astype(np.float64)
        mixed = _attend(*(_heads(part, c.num_heads) for part in (query, k, v)))
        x = self._dense(f"{at}.out_proj", d, mixed)
        return self._dense(f"{at}.proj", d, self._layer_norm(f"{at}.ln_post", x, c.norm_eps))

    def key_positions(self, shape: tuple[int, int]) -> Array:
        at = "resampler"
        if f"{at}.key_positions" in self._tensors:
            return self._tensors[f"{at}.key_positions"]
        d = self.config.decoder.hidden_size
        table = sincos_grid(d, *shape).numpy()
        parts = zip(("column", "row"), np.split(table, 2, axis=1), strict=True)
        sums: Array = sum(self._linear(f"{at}.key_{n}_proj.weight", d, x) for n, x in parts)
        return sums + self._tensors[f"{at}.k_proj.bias"]

    def embed(self, ids: list[int]) -> Array:
        c = self.config.decoder
        table = self._dequantized("llm.embed", c.vocab_size, c.hidden_size)
        return table[ids] * np.float32(c.scale_emb)

    def decoder(self, x: Array, window: int, pinned: int) -> list[Array]:
        """Runs all layers on a whole conversation (L, D); returns what each layer returns."""
        outputs = []
        for i in range(self.config.decoder.num_hidden_layers):
            x = self.layer(i, x, window, pinned)
            outputs.append(x)
        return outputs

    def layer(self, i: int, x: Array, window: int, pinned: int) -> Array:
        c = self.config.decoder
        at, d = f"llm.layers.{i}", c.hidden_size
        normed = self._rms_norm(f"{at}.input_norm.weight", x)
        qkv = self._linear(f"{at}.qkv", d + 2 * c.kv_dim, normed)
        q, k, v = np.split(qkv, [d, d + c.kv_dim], axis=1)
        mixed = self._attend_window(q, k, v, window, pinned)
        x = x + c.residual_scale * self._linear(f"{at}.o", d, mixed)
        normed = self._rms_norm(f"{at}.post_norm.weight", x)
        both = self._linear(f"{at}.gate_up", 2 * c.intermediate_size, normed)
        gates, values = np.split(both, 2, axis=1)
        hidden = gates / (1 + np.exp(-gates)) * values
        return x + c.residual_scale * self._linear(f"{at}.down", d, hidden)

    def logits(self, x: Array) -> Array:
        c = self.config.decoder
        untied = {"llm.head", "llm.head.q_weight"} & set(self._tensors)
        head = "llm.head" if untied else "llm.embed"
        normed = self._rms_norm("llm.norm.weight", x) / c.logits_divisor
        return self._linear(head, c.vocab_size, normed)

    def _attend_window(self, q: Array, k: Array, v: Array, window: int, pinned: int) -> Array:
        """Computes query by query, key by key, as described in `runtime.reference.kv_cache`."""
        c = self.config.decoder
        groups = c.num_attention_heads // c.num_key_value_heads
        queries, keys, values = _heads(q, c.num_attention_heads), _heads(k, 0, c.head_dim), v
        values = _heads(values, 0, c.head_dim)
        angle = c.rope_theta ** -(np.arange(0, c.head_dim, 2) / c.head_dim)
        stored = [_rotate(keys[:, j], j * angle) for j in range(len(k))]
        cached, values = (_cached(x, self._kv) for x in (np.stack(stored, axis=1), values))
        out = np.zeros_like(queries)
        for t in range(len(q)):
            near = _rotate(queries[:, t], t * angle)
            far = _rotate(queries[:, t], min(t, window - 1) * angle)
            seen = [j for j in range(t + 1) if j < pinned or j > t - (window - pinned)]
            for h in range(c.num_attention_heads):
                kv = h // groups
                scores = [(far if j < pinned else near)[h] @ cached[kv, j] for j in seen]
                out[h, t] = _softmax(np.array(scores) * c.head_dim**-0.5) @ values[kv, seen]
        return out.transpose(1, 0, 2).reshape(len(q), -1)

    def _dequantized(self, name: str, rows: int, columns: int) -> Array:
        if name in self._tensors:
            return untile_f16(self._tensors[name], rows).astype(np.float32)
        packed = [self._tensors[f"{name}.{part}"] for part in ("q_weight", "q_scale")]
        if packed[0].dtype == np.int8:
            return dequantize_int8(*unpack_int8_tiles(*packed, rows), columns)
        return dequantize_groups(*unpack_tiles(*packed, rows), SCHEME)

    def _linear(self, name: str, rows: int, x: Array) -> Array:
        if name in self._tensors:
            weight = untile_f16(self._tensors[name], rows).astype(np.float64)
            dense: Array = x.astype(np.float64) @ weight.T
            return dense
        packed = [self._tensors[f"{name}.{part}"] for part in ("q_weight", "q_scale")]
        if packed[0].dtype == np.int8:
            size, (codes, scale) = INT8_GROUP, unpack_int8_tiles(*packed, rows)
        else:
            size, (q, scale) = SIZE, unpack_tiles(*packed, rows)
            codes = q.astype(np.int8) - np.int8(SCHEME.zero_point)
        activations = quantize_activations(pad_groups(x.astype(np.float32), size), size)
        return multiply_codes(*activations, codes, scale).astype(np.float64)

    def _dense(self, name: str, rows: int, x: Array) -> Array:
        product = self._linear(f"{name}.weight", rows, x)
        return product + self._tensors.get(f"{name}.bias", np.zeros(rows))

    def _layer_norm(self, name: str, x: Array, eps: float) -> Array:
        x = x.astype(np.float64)
        normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
        return normed * self._tensors[f"{name}.weight"] + self._tensors[f"{name}.bias"]

    def _rms_norm(self, name: str, x: Array) -> Array:
        x = x.astype(np.float64)
        mean = (x**2).mean(-1, keepdims=True)
        eps = self.config.decoder.rms_norm_eps
        return x / np.sqrt(mean + eps) * self._tensors[name].astype(np.float64)


def _heads(x: Array, count: int, dim: int = 0) -> Array:
    """Splits (L, D) into `count` heads, or heads of `dim`: (H, L, dim)."""
    return x.reshape(len(x), count or x.shape[1] // dim, -1).transpose(1, 0, 2)


def _attend(q: Array, k: Array, v: Array) -> Array:
    weights = _softmax(q @ k.transpose(0, 2, 1) * q.shape[-1] ** -0.5)
    mixed: Any = weights @ v
    return mixed.transpose(1, 0, 2).reshape(q.shape[1], -1)


def _softmax(scores: Array) -> Array:
    weights: Array = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def _cached(x: Array, kv: str) -> Array:
    """Returns what a cache gives back for keys or values (H, L, head_dim)."""
    if kv == "fp16":
        return x.astype(np.float16).astype(np.float64)
    x = x.astype(np.float32)
    scale = np.abs(x).max(-1, keepdims=True) / np.float32(127)
    codes = np.rint(x / np.where(scale == 0, np.float32(1), scale))
    rounded: Array = codes.astype(np.float64) * scale
    return rounded


def _rotate(x: Array, angle: Array) -> Array:
    a, b = np.split(x, 2, axis=-1)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate((a * cos - b * sin, b * cos + a * sin), axis=-1)
