"""The model as a row of stages that can be fed and tapped one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convert.config import ModelConfig
from runtime.compiled import CompiledCache, CompiledModel
from runtime.picture import preprocess
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


class CompiledStages:
    """A bundle's compiled blocks."""

    def __init__(self, model: CompiledModel) -> None:
        self.config = model.config
        self._model = model

    def preprocess(self, picture: Image.Image) -> Tensor:
        """See `Stages`."""
        assert self.config.vision is not None
        return preprocess(picture, self.config.vision.image_size)[0]

    def vision_embed(self, pixels: Tensor) -> Tensor:
        """See `Stages`."""
        return torch.from_numpy(self._model.vision_embed(_numpy(pixels)))

    def vision_block(self, index: int, x: Tensor) -> Tensor:
        """See `Stages`."""
        return torch.from_numpy(self._model.vision_block(index, _numpy(x)))

    def vision_norm(self, x: Tensor) -> Tensor:
        """See `Stages`."""
        return torch.from_numpy(self._model.vision_norm(_numpy(x)))

    def resample(self, features: Tensor) -> Tensor:
        """See `Stages`."""
        return torch.from_numpy(self._model.resample(_numpy(features)))

    def embed(self, ids: Sequence[int]) -> Tensor:
        """See `Stages`."""
        return torch.from_numpy(self._model.embed(list(ids)))

    def layers(self, inputs: Sequence[Tensor], window: int, pinned: int) -> list[Tensor]:
        """See `Stages`."""
        cache: CompiledCache = self._model.new_cache(window, pinned)
        outputs: list[Tensor] = []
        for i in range(self.config.decoder.num_hidden_layers):
            x = _numpy(_layer_input(i, inputs, outputs))
            outputs.append(torch.from_numpy(self._model.layer(i, x, cache)))
        return outputs

    def logits(self, hidden: Tensor) -> Tensor:
        """See `Stages`."""
        return torch.from_numpy(self._model.logits(_numpy(hidden)))


def _layer_input(index: int, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
    if len(inputs) > 1:
        return inputs[index]
    return outputs[-1] if outputs else inputs[0]


def _numpy(x: Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.numpy(), dtype=np.float32)
