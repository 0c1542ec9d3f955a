"""What generation asks of a model, and the PyTorch model that answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor

from convert.checkpoint.config import ModelConfig
from runtime.reference.kv_cache import KVCache
from runtime.reference.model import MiniCPMV


class Cache(Protocol):
    """The decoder's memory of one conversation, with the window of `KVCache`."""

    @property
    def length(self) -> int:
        """Tokens seen so far, evicted ones included."""

    def truncate(self, length: int) -> bool:
        """Goes back to the first `length` tokens; False and unchanged if they are gone."""


class Backend(Protocol):
    """A model that runs somewhere. Tensors may be on any device, in any float dtype."""

    @property
    def config(self) -> ModelConfig:
        """The model's geometry."""

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Maps normalised pixels (1, 3, S, S) float32 to image tokens (Q, D)."""

    def embed(self, ids: Sequence[int]) -> Tensor:
        """Maps token ids to scaled embeddings (L, D)."""

    def new_cache(self, window: int, pinned: int) -> Cache:
        """Makes an empty cache; see `KVCache`."""

    def forward(self, embeds: Tensor, cache: Cache) -> Tensor:
        """Runs the decoder on (L, D) and adds them to the cache; returns hidden states (L, D).

        A `KVCache` takes (B, L, D), too: B continuations of one conversation.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """Maps hidden states (..., D) to float32 logits (..., V)."""


class ReferenceBackend:
    """The PyTorch model."""

    def __init__(self, model: MiniCPMV) -> None:
        """Args: model: on any device, in any float dtype."""
        self._model = model.eval()
        self.config = model.config

    @torch.inference_mode()
    def encode_image(self, pixels: Tensor) -> Tensor:
        """See `Backend`."""
        tokens = self._model.encode_image(pixels)[0]
        if tokens.device.type == "cuda":
            torch.cuda.synchronize(tokens.device)  # so that the time is counted where it is spent
        elif tokens.device.type == "mps":
            torch.mps.synchronize()
        return tokens

    @torch.inference_mode()
    def embed(self, ids: Sequence[int]) -> Tensor:
        """See `Backend`."""
        tokens = torch.tensor([list(ids)], dtype=torch.long, device=self._model.device)
        return self._model.llm.embed(tokens)[0]

    def new_cache(self, window: int, pinned: int) -> KVCache:
        """See `Backend`."""
        return KVCache(self.config.decoder.num_hidden_layers, window=window, pinned=pinned)

    @torch.inference_mode()
    def forward(self, embeds: Tensor, cache: Cache) -> Tensor:
        """See `Backend`."""
        rows = embeds if embeds.dim() == 3 else embeds.unsqueeze(0)
        hidden: Tensor = self._model.llm(rows, cache=cast(KVCache, cache))
        return hidden if embeds.dim() == 3 else hidden[0]

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """See `Backend`."""
        return self._model.llm.logits(hidden)
