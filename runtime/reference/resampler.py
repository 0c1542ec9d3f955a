"""The perceiver resampler: one cross-attention from learned queries to the patches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convert.checkpoint.config import ResamplerConfig
from convert.checkpoint.positions import interpolate_grid, sincos_grid


class CrossAttention(nn.Module):
    """Multi-head attention with packed input projections, as `nn.MultiheadAttention` stores it."""

    def __init__(self, c: ResamplerConfig) -> None:
        super().__init__()
        self.num_heads = c.num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * c.embed_dim, c.embed_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * c.embed_dim))
        self.out_proj = nn.Linear(c.embed_dim, c.embed_dim)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Maps query (Q, D), key and value (B, P, D) to (B, Q, D)."""
        (wq, wk, wv), (bq, bk, bv) = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q = F.linear(query, wq, bq).expand(key.shape[0], -1, -1)
        k, v = F.linear(key, wk, bk), F.linear(value, wv, bv)
        head_dim = query.shape[-1] // self.num_heads
        q, k, v = (t.view(*t.shape[:2], -1, head_dim).transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v)
        mixed: Tensor = self.out_proj(out.transpose(1, 2).flatten(-2))
        return mixed


class Resampler(nn.Module):
    """Turns the patches of an image into `query_num` image tokens."""

    def __init__(self, c: ResamplerConfig, grid: int | None) -> None:
        """Args: c: the geometry. grid: patches along one side; None: it varies."""
        super().__init__()
        self.patch_grid = grid
        self.query = nn.Parameter(torch.zeros(c.query_num, c.embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(c.query_num, c.embed_dim))
        self.kv_proj = nn.Linear(c.kv_dim, c.embed_dim, bias=False)
        self.attn = CrossAttention(c)
        self.ln_q = nn.LayerNorm(c.embed_dim, eps=c.norm_eps)
        self.ln_kv = nn.LayerNorm(c.embed_dim, eps=c.norm_eps)
        self.ln_post = nn.LayerNorm(c.embed_dim, eps=c.norm_eps)
        self.proj = nn.Parameter(torch.zeros(c.embed_dim, c.embed_dim))

    def forward(self, features: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        """Maps vision features (B, P, Dv) to image tokens (B, Q, D).

        Args:
            features: row by row.
            shape: rows and columns of patches, for images of several shapes.
        """
        kv = self.ln_kv(self.kv_proj(features))
        keys = kv + self._key_positions(shape).to(kv)
        x = self.attn(self.ln_q(self.query) + self.pos_embed, keys, kv)
        out: Tensor = self.ln_post(x) @ self.proj
        return out

    def _key_positions(self, shape: tuple[int, int] | None) -> Tensor:
        """Returns the keys' positions (P, D), float32."""
        if self.patch_grid is not None:
            return interpolate_grid(self.pos_embed, self.patch_grid, self.patch_grid)
        assert shape is not None, "images have several shapes"
        return sincos_grid(self.pos_embed.shape[1], *shape)
