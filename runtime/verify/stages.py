"""The model as a row of stages that can be fed and tapped one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from convert.config import ModelConfig
from runtime.engine_client import EngineClient
from runtime.picture import preprocess
from runtime.protocol import Field, Tap
from runtime.reference.kv_cache import KVCache
from runtime.reference.model import MiniCPMV


class Stages(Protocol):
    """What verify asks of a model; tensors are float32 on the CPU, without a batch axis."""

    @property
    def config(self) -> ModelConfig:
        """The model's geometry."""

    def preprocess(self, picture: Image.Image) -> Tensor:
        """Returns normalised pixels (3, S, S)."""

    def vision_embed(self, pixels: Tensor) -> Tensor:
        """Maps pixels (3, S, S) to patch embeddings with positions (P, D)."""

    def vision_block(self, index: int, x: Tensor) -> Tensor:
        """Runs one vision block on (P, D)."""

    def vision_norm(self, x: Tensor) -> Tensor:
        """Maps (P, D) to vision features (P, D)."""

    def resample(self, features: Tensor) -> Tensor:
        """Maps vision features (P, Dv) to image tokens (Q, D)."""

    def embed(self, ids: Sequence[int]) -> Tensor:
        """Maps token ids to scaled embeddings (L, D)."""

    def layers(self, inputs: Sequence[Tensor], window: int, pinned: int) -> list[Tensor]:
        """Runs every decoder layer on an input of its own (L, D); returns their outputs.

        One input alone is the first layer's: the others then get the output before.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """Maps hidden states (L, D) to logits (L, V)."""


class TorchStages:
    """A PyTorch model: the reference, or the model of a bundle's arithmetic."""

    def __init__(self, model: MiniCPMV, cache: type[KVCache] = KVCache) -> None:
        """Args: cache: the kind that its decoder uses."""
        self.config = model.config
        self._model, self._cache = model, cache

    def preprocess(self, picture: Image.Image) -> Tensor:
        """See `Stages`."""
        assert self.config.vision is not None
        return preprocess(picture, self.config.vision.image_size)[0]

    @torch.inference_mode()
    def vision_embed(self, pixels: Tensor) -> Tensor:
        """See `Stages`."""
        assert self._model.vpm is not None
        return self._model.vpm.embed(pixels.unsqueeze(0))[0]

    @torch.inference_mode()
    def vision_block(self, index: int, x: Tensor) -> Tensor:
        """See `Stages`."""
        assert self._model.vpm is not None
        out: Tensor = self._model.vpm.blocks[index](x.unsqueeze(0))[0]
        return out

    @torch.inference_mode()
    def vision_norm(self, x: Tensor) -> Tensor:
        """See `Stages`."""
        assert self._model.vpm is not None
        out: Tensor = self._model.vpm.norm(x)
        return out

    @torch.inference_mode()
    def resample(self, features: Tensor) -> Tensor:
        """See `Stages`."""
        assert self._model.resampler is not None
        out: Tensor = self._model.resampler(features.unsqueeze(0))[0]
        return out

    @torch.inference_mode()
    def embed(self, ids: Sequence[int]) -> Tensor:
        """See `Stages`."""
        return self._model.llm.embed(torch.tensor([list(ids)]))[0]

    @torch.inference_mode()
    def layers(self, inputs: Sequence[Tensor], window: int, pinned: int) -> list[Tensor]:
        """See `Stages`."""
        count = self.config.decoder.num_hidden_layers
        cache = self._cache(count, window=window, pinned=pinned)
        positions = torch.arange(inputs[0].shape[0])
        cache.extend(positions)
        outputs: list[Tensor] = []
        for i, layer in enumerate(self._model.llm.model.layers):
            x = _layer_input(i, inputs, outputs)
            outputs.append(layer(x.unsqueeze(0), positions, None, cache, i)[0])
        return outputs

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """See `Stages`."""
        return self._model.llm.logits(hidden)


class EngineStages:
    """A bundle's engine, one stage at a time."""

    def __init__(self, client: EngineClient, config: ModelConfig) -> None:
        """Args: client: with the bundle loaded. config: the bundle's."""
        self._client, self.config = client, config

    def preprocess(self, picture: Image.Image) -> Tensor:
        """See `Stages`."""
        return torch.from_numpy(self._client.tap(Tap.PREPROCESS, picture))

    def vision_embed(self, pixels: Tensor) -> Tensor:
        """See `Stages`."""
        return self._tap(Tap.VISION_EMBED, pixels)

    def vision_block(self, index: int, x: Tensor) -> Tensor:
        """See `Stages`."""
        return self._tap(Tap.VISION_BLOCK, x, {Field.INDEX: index})

    def vision_norm(self, x: Tensor) -> Tensor:
        """See `Stages`."""
        return self._tap(Tap.VISION_NORM, x)

    def resample(self, features: Tensor) -> Tensor:
        """See `Stages`."""
        return self._tap(Tap.RESAMPLER, features)

    def embed(self, ids: Sequence[int]) -> Tensor:
        """See `Stages`."""
        return torch.from_numpy(self._client.tap(Tap.EMBED, ids))

    def layers(self, inputs: Sequence[Tensor], window: int, pinned: int) -> list[Tensor]:
        """See `Stages`."""
        each = len(inputs) > 1
        options = {Field.WINDOW: window, Field.PINNED: pinned, Field.PER_LAYER: each}
        return list(
            self._tap(Tap.LAYERS, torch.stack(list(inputs)) if each else inputs[0], options)
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """See `Stages`."""
        return self._tap(Tap.LOGITS, hidden)

    def _tap(self, what: str, x: Tensor, options: Mapping[str, Any] | None = None) -> Tensor:
        return torch.from_numpy(self._client.tap(what, x.numpy(), options or {}))


def _layer_input(index: int, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
    if len(inputs) > 1:
        return inputs[index]
    return outputs[-1] if outputs else inputs[0]
