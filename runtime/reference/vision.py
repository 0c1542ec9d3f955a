"""SigLIP's vision encoder and its patch embedding. Axes: B batch, P patches, D width, H heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convert.checkpoint.config import VisionConfig
from convert.checkpoint.positions import resample_grid


class PatchEmbed(nn.Module):
    """Cuts a picture into square patches and projects each one."""

    def __init__(self, c: VisionConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, c.embed_dim, c.patch_size, stride=c.patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """Maps pixels (B, 3, height, width) to patches (B, P, D), row by row."""
        out: Tensor = self.proj(pixels)
        return out.flatten(2).transpose(1, 2)


class VisionAttention(nn.Module):
    """Self-attention of all patches, with one projection for queries, keys and values."""

    def __init__(self, c: VisionConfig) -> None:
        super().__init__()
        self.num_heads = c.num_heads
        self.qkv = nn.Linear(c.embed_dim, 3 * c.embed_dim)
        self.proj = nn.Linear(c.embed_dim, c.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, P, D) to (B, P, D)."""
        b, p, d = x.shape
        qkv = self.qkv(x).view(b, p, 3, self.num_heads, d // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v)
        mixed: Tensor = self.proj(out.transpose(1, 2).reshape(b, p, d))
        return mixed


class VisionMLP(nn.Module):
    """Two linears with the exact (erf) GELU between them."""

    def __init__(self, c: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(c.embed_dim, c.mlp_hidden_dim)
        self.fc2 = nn.Linear(c.mlp_hidden_dim, c.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, P, D) to (B, P, D)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class VisionBlock(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, c: VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(c.embed_dim, eps=c.norm_eps)
        self.attn = VisionAttention(c)
        self.norm2 = nn.LayerNorm(c.embed_dim, eps=c.norm_eps)
        self.mlp = VisionMLP(c)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, P, D) to (B, P, D)."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class VisionEncoder(nn.Module):
    """The whole tower: patches plus positions, blocks, final norm; no pooling."""

    def __init__(self, c: VisionConfig) -> None:
        super().__init__()
        self.patch_size = c.patch_size
        self.patch_embed = PatchEmbed(c)
        # Of a square they are resampled to its grid at load, else as the checkpoint has them.
        self._is_square = c.slices is None
        positions = c.num_patches if self._is_square else c.trained_grid**2
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, c.embed_dim))
        self.blocks = nn.ModuleList(VisionBlock(c) for _ in range(c.depth))
        self.norm = nn.LayerNorm(c.embed_dim, eps=c.norm_eps)

    def embed(self, pixels: Tensor) -> Tensor:
        """Maps pixels (B, 3, height, width) to patch embeddings with positions (B, P, D)."""
        patches: Tensor = self.patch_embed(pixels)
        return patches + self._positions(pixels).to(patches.dtype)

    def _positions(self, pixels: Tensor) -> Tensor:
        """Returns the positions (1, P, D) of the grid of patches that an image has."""
        if self._is_square:
            return self.pos_embed
        rows, columns = (side // self.patch_size for side in pixels.shape[-2:])
        return resample_grid(self.pos_embed, rows, columns)

    def forward(self, pixels: Tensor) -> Tensor:
        """Maps normalised pixels (B, 3, height, width) to features (B, P, D)."""
        x = self.embed(pixels)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.norm(x)
        return out
