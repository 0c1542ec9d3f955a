"""The vision part of a package's configuration, as the plugged-in model and MLC-LLM read it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from convert.checkpoint.config import ModelConfig
from convert.mlc.square import square_side
from quantize.errors import ConfigError
from quantize.int8 import INT8_GROUP


@dataclass(frozen=True, kw_only=True)
class MlcVisionConfig:
    """`vision_config` of `mlc-chat-config.json`.

    MLC-LLM's engine counts a picture's tokens as image_size² / patch_size², rounded down;
    `patch_size` is therefore chosen to give the number of queries, and the encoder's own is
    `encoder_patch_size`.
    """

    image_size: int  # S; pixels
    patch_size: int  # about S / sqrt(Q); what MLC-LLM divides by
    encoder_patch_size: int  # pixels
    embed_dim: int
    depth: int
    num_heads: int
    mlp_hidden_dim: int
    norm_eps: float
    num_queries: int
    resampler_heads: int
    resampler_norm_eps: float
    int8_group: int  # values of a matrix's row that share a scale

    @staticmethod
    def of(config: ModelConfig) -> MlcVisionConfig:
        """Takes the geometry of a model with a vision encoder.

        Raises:
            ConfigError: no patch size makes MLC-LLM count the model's image tokens.
        """
        vision, resampler = config.vision, config.resampler
        assert vision is not None and resampler is not None
        side = square_side(vision)
        pixels, queries = side**2, resampler.query_num
        patch = math.isqrt(pixels // queries)
        if pixels // patch**2 != queries:
            raise ConfigError(
                f"a picture of {side} pixels gives {queries} image tokens, which "
                "MLC-LLM cannot count: it divides by whole patches; use --no-mlc-pictures"
            )
        return MlcVisionConfig(
            image_size=side,
            patch_size=patch,
            encoder_patch_size=vision.patch_size,
            embed_dim=vision.embed_dim,
            depth=vision.depth,
            num_heads=vision.num_heads,
            mlp_hidden_dim=vision.mlp_hidden_dim,
            norm_eps=vision.norm_eps,
            num_queries=queries,
            resampler_heads=resampler.num_heads,
            resampler_norm_eps=resampler.norm_eps,
            int8_group=INT8_GROUP,
        )

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> MlcVisionConfig:
        """Reads what `to_json` wrote."""
        return MlcVisionConfig(**raw)

    def to_json(self) -> dict[str, Any]:
        """Returns the content of `vision_config`."""
        return asdict(self)

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.encoder_patch_size

    @property
    def num_patches(self) -> int:
        """Patches of a picture."""
        return self.grid**2
