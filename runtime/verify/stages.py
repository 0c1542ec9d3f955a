"""The model as a row of stages that can be fed and tapped one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from PIL import Image
from torch import Tensor

from convert.checkpoint.config import ModelConfig
from convert.support.progress import Progress
from runtime.engine_client.picture_taps import PictureTaps
from runtime.engine_client.protocol import Field, Tap
from runtime.inputs.prompt import Message, Prompt
from runtime.inputs.slices import Grid, Images, images_of
from runtime.reference.kv_cache import ATTENTION_SINKS, KVCache
from runtime.reference.model import MiniCPMV
from runtime.sessions.engine_session import EngineSession

T = TypeVar("T")
Shape = tuple[int, int]  # of an image: rows and columns of patches
LAYER_TOKENS = 64  # fed to layers whose window is narrow; more tokens would show nothing new


def shape_of(pixels: Tensor, config: ModelConfig) -> Shape:
    """Returns the shape of an image, by its pixels (3, height, width)."""
    assert config.vision is not None
    rows, columns = (side // config.vision.patch_size for side in pixels.shape[-2:])
    return rows, columns


def narrow_window(tokens: int) -> int:
    """Returns a window that even a short prompt's tokens overflow."""
    return max(ATTENTION_SINKS + 2, min(24, tokens // 2))


class Stages(Protocol):
    """What verify asks of a model; tensors are float32 on the CPU, without a batch axis."""

    @property
    def config(self) -> ModelConfig:
        """The model's geometry."""

    def images(self, picture: Image.Image) -> Images:
        """Returns what the vision encoder gets of a picture."""

    def vision_embed(self, pixels: Tensor) -> Tensor:
        """Maps an image's pixels (3, height, width) to patch embeddings with positions (P, D)."""

    def vision_block(self, index: int, x: Tensor) -> Tensor:
        """Runs one vision block on (P, D)."""

    def vision_norm(self, x: Tensor) -> Tensor:
        """Maps (P, D) to vision features (P, D)."""

    def resample(self, features: Tensor, shape: Shape) -> Tensor:
        """Maps vision features (P, Dv) of an image with a shape to image tokens (Q, D)."""

    def embed(self, ids: Sequence[int]) -> Tensor:
        """Maps token ids to scaled embeddings (L, D)."""

    def layers(self, inputs: Sequence[Tensor], window: int, pinned: int) -> list[Tensor]:
        """Runs every decoder layer on an input of its own (L, D); returns their outputs.

        One input alone is the first layer's: the others then get the output before.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """Maps hidden states (L, D) to logits (L, V)."""


@dataclass(frozen=True)
class _Pass:
    """What the decoder's layers had and gave; L tokens."""

    inputs: list[Tensor]  # (L, D), one or one for each layer
    outputs: list[Tensor]  # (L, D) of each layer
    cache: KVCache  # holds the L tokens

    def shared(self, inputs: Sequence[Tensor], window: int, pinned: int) -> int:
        """Returns how many first tokens of other inputs it has had, and goes back to them."""
        if (self.cache.window, self.cache.pinned) != (window, pinned):
            return 0
        rows = min(len(self.inputs[0]), len(inputs[0]))
        for old, new in zip(self.inputs, inputs, strict=True):
            other = (old[:rows] != new[:rows]).any(-1).nonzero()
            rows = int(other[0]) if len(other) else rows
        if rows < self.cache.length and not self.cache.truncate(rows):
            return 0
        return rows


class TorchStages:
    """A PyTorch model: the reference, or the model of a bundle's arithmetic.

    What goes in and comes out is float32, whatever the model computes in.
    """

    def __init__(self, model: MiniCPMV, cache: Callable[..., KVCache] = KVCache) -> None:
        """Args: cache: the kind that its decoder uses."""
        self.config = model.config
        self._model, self._cache, self._dtype = model, cache, model.dtype
        # The latest pass of each kind and window.
        self._passes: dict[tuple[bool, int], _Pass] = {}

    def images(self, picture: Image.Image) -> Images:
        """See `Stages`."""
        assert self.config.vision is not None
        return images_of(picture, self.config.vision)

    @torch.inference_mode()
    def vision_embed(self, pixels: Tensor) -> Tensor:
        """See `Stages`."""
        assert self._model.vpm is not None
        return self._model.vpm.embed(pixels.unsqueeze(0).to(self._dtype))[0].float()

    @torch.inference_mode()
    def vision_block(self, index: int, x: Tensor) -> Tensor:
        """See `Stages`."""
        assert self._model.vpm is not None
        out: Tensor = self._model.vpm.blocks[index](x.unsqueeze(0).to(self._dtype))[0]
        return out.float()

    @torch.inference_mode()
    def vision_norm(self, x: Tensor) -> Tensor:
        """See `Stages`."""
        assert self._model.vpm is not None
        out: Tensor = self._model.vpm.norm(x.to(self._dtype))
        return out.float()

    @torch.inference_mode()
    def resample(self, features: Tensor, shape: Shape) -> Tensor:
        """See `Stages`."""
        assert self._model.resampler is not None
        out: Tensor = self._model.resampler(features.unsqueeze(0).to(self._dtype), shape)[0]
        return out.float()

    @torch.inference_mode()
    def embed(self, ids: Sequence[int]) -> Tensor:
        """See `Stages`."""
        return self._model.llm.embed(torch.tensor([list(ids)]))[0].to(self._dtype).float()

    @torch.inference_mode()
    def layers(self, inputs: Sequence[Tensor], window: int, pinned: int) -> list[Tensor]:
        """See `Stages`.

        No token depends on later ones. What the first tokens gave in the latest pass is not
        computed again: a picture's with its next question, nor all before an answer's next token.
        """
        count, kind = self.config.decoder.num_hidden_layers, (len(inputs) > 1, window)
        latest = self._passes.pop(kind, None)
        done = 0 if latest is None else latest.shared(inputs, window, pinned)
        if latest is None or not done:
            latest = _Pass([], [], self._cache(count, window=window, pinned=pinned))
        outputs = [x[:done] for x in latest.outputs]
        if done < len(inputs[0]):
            new = self._run([x[done:] for x in inputs], done, latest.cache)
            outputs = [torch.cat(pair) for pair in zip(outputs, new, strict=True)] if done else new
        self._passes[kind] = _Pass(list(inputs), outputs, latest.cache)
        return outputs

    def _run(self, inputs: Sequence[Tensor], start: int, cache: KVCache) -> list[Tensor]:
        """Runs every layer on the tokens from index `start` on."""
        positions = torch.arange(start, start + len(inputs[0]))
        cache.extend(positions)
        outputs: list[Tensor] = []
        for i, layer in enumerate(self._model.llm.model.layers):
            x = _layer_input(i, inputs, outputs).to(self._dtype)
            outputs.append(layer(x.unsqueeze(0), positions, None, cache, i)[0].float())
        return outputs

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """See `Stages`."""
        return self._model.llm.logits(hidden.to(self._dtype))


class EngineStages:
    """A bundle's engine, one stage at a time."""

    def __init__(self, session: EngineSession) -> None:
        """Args: session: with the bundle; an engine that goes away with its phone is replaced."""
        self._session, self.config = session, session.config

    def images(self, picture: Image.Image) -> Images:
        """See `Stages`."""
        pixels, grid = self._picture(lambda taps: taps.images(picture))
        return Images(tuple(torch.from_numpy(image).unsqueeze(0) for image in pixels), grid)

    def vision_embed(self, pixels: Tensor) -> Tensor:
        """See `Stages`."""
        return torch.from_numpy(self._picture(lambda taps: taps.embed(pixels.numpy())))

    def vision_block(self, index: int, x: Tensor) -> Tensor:
        """See `Stages`."""
        return torch.from_numpy(self._picture(lambda taps: taps.block(index, x.numpy())))

    def vision_norm(self, x: Tensor) -> Tensor:
        """See `Stages`."""
        return torch.from_numpy(self._picture(lambda taps: taps.norm(x.numpy())))

    def resample(self, features: Tensor, shape: Shape) -> Tensor:
        """See `Stages`."""
        return torch.from_numpy(self._picture(lambda taps: taps.resample(features.numpy(), shape)))

    def embed(self, ids: Sequence[int]) -> Tensor:
        """See `Stages`."""
        return self._session.ask(lambda client: torch.from_numpy(client.tap(Tap.EMBED, ids)))

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

    def prompt(self, messages: Sequence[Message], image_tokens: int, grid: Grid | None) -> Prompt:
        """Returns what the engine makes of a conversation; `grid`: of its picture's slices."""
        return self._session.ask(
            lambda client: Prompt(*client.tokenize(messages, image_tokens, grid))
        )

    def text(self, ids: Sequence[int]) -> str:
        """Returns what the engine makes of an answer."""
        return self._session.ask(lambda client: client.detokenize(ids))

    def self_check(self, on_progress: Progress) -> list[dict[str, Any]]:
        """Returns what the engine says of its golden answers."""
        checks: list[dict[str, Any]] = self._session.ask(
            lambda client: client.self_check(on_progress)[Field.CHECKS]
        )
        return checks

    def _picture(self, run: Callable[[PictureTaps], T]) -> T:
        vision = self.config.vision
        assert vision is not None, "a decoder-only model"
        return self._session.ask(lambda client: run(PictureTaps(client, vision)))

    def _tap(self, what: str, x: Tensor, options: Mapping[str, Any] | None = None) -> Tensor:
        return self._session.ask(
            lambda client: torch.from_numpy(client.tap(what, x.numpy(), options or {}))
        )


def _layer_input(index: int, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
    if len(inputs) > 1:
        return inputs[index]
    return outputs[-1] if outputs else inputs[0]
