"""The whole model as one module, with the parameter names of its checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convert.checkpoint.config import ModelConfig
from runtime.reference.decoder import Decoder
from runtime.reference.resampler import Resampler
from runtime.reference.vision import VisionEncoder


class MiniCPMV(nn.Module):
    """MiniCPM-V; without vision for a decoder-only checkpoint."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.llm = Decoder(config.decoder)
        self.vpm: VisionEncoder | None = None
        self.resampler: Resampler | None = None
        if config.vision is not None and config.resampler is not None:
            self.vpm = VisionEncoder(config.vision)
            grid = config.vision.grid if config.vision.slices is None else None
            self.resampler = Resampler(config.resampler, grid)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.llm.model.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are stored in."""
        return self.llm.model.norm.weight.dtype

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Maps normalised pixels (B, 3, height, width) to image tokens (B, Q, D)."""
        assert self.vpm is not None and self.resampler is not None, "a decoder-only model"
        rows, columns = (side // self.vpm.patch_size for side in pixels.shape[-2:])
        features = self.vpm(pixels.to(self.device, self.dtype))
        out: Tensor = self.resampler(features, (rows, columns))
        return out

    def embed_prompt(self, ids: Tensor, image_start: int | None, image: Tensor | None) -> Tensor:
        """Embeds ids (L,) and puts image tokens (Q, D) at index `image_start`: (1, L, D).

        Image tokens are not multiplied by `scale_emb`.
        """
        embeds = self.llm.embed(ids.to(self.device).unsqueeze(0))
        if image is not None and image_start is not None:
            embeds[0, image_start : image_start + image.shape[0]] = image.to(embeds.dtype)
        return embeds
