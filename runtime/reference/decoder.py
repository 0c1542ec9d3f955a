"""MiniCPM's decoder. Axes: B batch, L new tokens, T cached and new tokens, D width, H heads."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convert.checkpoint.config import DecoderConfig
from runtime.reference.kv_cache import KVCache

Tap = Callable[[str, Tensor], None]


class RMSNorm(nn.Module):
    """Root-mean-square norm; the mean is taken in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., D) to (..., D)."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return wide.to(x.dtype) * self.weight


class Rotary:
    """Rotates pairs of a head's halves by an angle that grows with the position."""

    def __init__(self, c: DecoderConfig) -> None:
        # On the CPU even when the module is built without storage: no checkpoint holds it.
        steps = torch.arange(0, c.head_dim, 2, dtype=torch.float64, device="cpu")
        exponents = steps / c.head_dim
        self.frequencies = c.rope_theta**-exponents

    def __call__(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rotates x (B, H, L, head_dim) to positions (L,) or (B, L), integers."""
        # Angles in float64: a long conversation's positions are large, and sin amplifies that.
        # MPS has no float64.
        device = "cpu" if positions.device.type == "mps" else positions.device
        angles = positions.to(device).double().unsqueeze(-1) * self.frequencies.to(device)
        angles = angles if angles.dim() == 2 else angles.unsqueeze(1)
        cos, sin = angles.cos().float().to(x.device), angles.sin().float().to(x.device)
        a, b = x.float().chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


class DecoderAttention(nn.Module):
    """Causal self-attention with rotary positions and a KV cache."""

    def __init__(self, c: DecoderConfig, rotary: Rotary) -> None:
        super().__init__()
        self.c, self.rotary = c, rotary
        self.q_proj = nn.Linear(c.hidden_size, c.hidden_size, bias=False)
        self.k_proj = nn.Linear(c.hidden_size, c.kv_dim, bias=False)
        self.v_proj = nn.Linear(c.hidden_size, c.kv_dim, bias=False)
        self.o_proj = nn.Linear(c.hidden_size, c.hidden_size, bias=False)

    def forward(
        self, x: Tensor, positions: Tensor, mask: Tensor | None, cache: KVCache | None, layer: int
    ) -> Tensor:
        """Maps x (B, L, D) to (B, L, D); see `Decoder.forward`."""
        heads = (-1, self.c.head_dim)
        q, k, v = (
            p(x).unflatten(-1, heads).transpose(1, 2)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        k = self.rotary(k, positions)
        if cache is None:
            q = self.rotary(q, positions)
            out = self._attend(q, k, v, mask)
        else:
            k, v = cache.append(layer, k, v)
            out = self._attend_cached(q, k, v, positions, cache)
        mixed: Tensor = self.o_proj(out.transpose(1, 2).flatten(-2))
        return mixed

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        groups = self.c.num_attention_heads // self.c.num_key_value_heads
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)

    def _attend_cached(
        self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor, cache: KVCache
    ) -> Tensor:
        """Attends with the sliding window's two distances: see `KVCache`."""
        near = self.rotary(q, positions)
        mask = cache.visible(positions)
        if not cache.slides(positions):
            return self._attend(near, k, v, mask)
        groups = self.c.num_attention_heads // self.c.num_key_value_heads
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        far = self.rotary(q, positions.clamp(max=cache.window - 1))
        pinned = cache.positions < cache.pinned
        scores = torch.where(pinned, far @ k.transpose(-1, -2), near @ k.transpose(-1, -2))
        scores = scores.float() * self.c.head_dim**-0.5
        weights = scores.masked_fill(~mask, float("-inf")).softmax(-1).to(v.dtype)
        out: Tensor = weights @ v
        return out


class DecoderMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, c: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, L, D) to (B, L, D)."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class DecoderLayer(nn.Module):
    """A pre-norm layer whose two residual branches are scaled."""

    def __init__(self, c: DecoderConfig, rotary: Rotary) -> None:
        super().__init__()
        self.residual_scale = c.residual_scale
        self.self_attn = DecoderAttention(c, rotary)
        self.mlp = DecoderMLP(c)
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)

    def forward(
        self, x: Tensor, positions: Tensor, mask: Tensor | None, cache: KVCache | None, layer: int
    ) -> Tensor:
        """Maps x (B, L, D) to (B, L, D)."""
        attended = self.self_attn(self.input_layernorm(x), positions, mask, cache, layer)
        x = x + attended * self.residual_scale
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x)) * self.residual_scale
        return out


class DecoderStack(nn.Module):
    """Token embedding, layers and final norm: `llm.model` in a checkpoint."""

    def __init__(self, c: DecoderConfig) -> None:
        super().__init__()
        rotary = Rotary(c)
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(c, rotary) for _ in range(c.num_hidden_layers))
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)


class Decoder(nn.Module):
    """The language model: `llm` in a checkpoint."""

    def __init__(self, c: DecoderConfig) -> None:
        super().__init__()
        self.c = c
        self.model = DecoderStack(c)
        self.lm_head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)
        self.lm_head.weight = self.model.embed_tokens.weight

    def embed(self, ids: Tensor) -> Tensor:
        """Maps token ids (B, L) to scaled embeddings (B, L, D)."""
        out: Tensor = self.model.embed_tokens(ids) * self.c.scale_emb
        return out

    def forward(
        self,
        embeds: Tensor,
        *,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        tap: Tap | None = None,
    ) -> Tensor:
        """Runs the layers.

        Args:
            embeds: (B, L, D): scaled token embeddings, image tokens among them.
            cache: what the tokens before were turned into; grows by L.
            positions: (L,) or (B, L) integers; by default they follow the cache, or start at 0.
            mask: (B, 1, L, L) booleans, true where attention is allowed; without a cache only.
            tap: called with a name and (B, L, D) after every layer.

        Returns:
            The last layer's hidden states (B, L, D), before the final norm.
        """
        if positions is None:
            start = cache.length if cache is not None else 0
            positions = torch.arange(start, start + embeds.shape[1], device=embeds.device)
        if cache is not None:
            cache.extend(positions)
        x = embeds
        for i, layer in enumerate(self.model.layers):
            x = layer(x, positions, mask, cache, i)
            if tap is not None:
                tap(f"layers.{i}", x)
        if cache is not None:
            cache.evict()
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Maps hidden states (..., D) to float32 logits (..., V)."""
        x = self.model.norm(hidden) / self.c.logits_divisor
        out: Tensor = self.lm_head(x)
        return out.float()
