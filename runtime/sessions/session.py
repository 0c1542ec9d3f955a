"""What answers conversations: the interface that the reference and the engine share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from convert.support.progress import Progress
from runtime.engine_client.protocol import Stop
from runtime.inputs.callbacks import Cancelled, OnLogprobs, OnText
from runtime.inputs.picture_format import PictureError
from runtime.inputs.prompt import PromptError

if TYPE_CHECKING:
    from PIL import Image

    from convert.checkpoint.config import ModelConfig, VisionConfig
    from runtime.inputs.generation_options import GenerationOptions
    from runtime.inputs.prompt import Message


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What an answer took."""

    encode_ms: float  # the picture; 0 where its image tokens were remembered
    prefill_ms: float
    decode_ms: float
    prompt_tokens: int
    reused_tokens: int  # of the prompt, found in the cache
    generated_tokens: int
    decode_steps: int  # tokens after the first, EOS included
    stop: str  # a value of `runtime.engine_client.protocol.Stop`
    peak_rss_bytes: int | None = None  # of the engine's process so far; None: not measured

    @property
    def prefill_tok_s(self) -> float:
        """Speed of the prefill; reused tokens do not count."""
        return _rate(self.prompt_tokens - self.reused_tokens, self.prefill_ms)

    @property
    def decode_tok_s(self) -> float:
        """Speed of the decoding."""
        return _rate(self.decode_steps, self.decode_ms)


@dataclass(frozen=True)
class Reply:
    """An answer."""

    text: str
    ids: list[int]
    statistics: Statistics


class Session(Protocol):
    """A model with the cache of its latest conversation."""

    @property
    def config(self) -> ModelConfig:
        """The model's geometry."""

    def reply(
        self,
        messages: Sequence[Message],
        picture: Image.Image | None,
        options: GenerationOptions,
        *,
        max_slices: int | None = ...,
        on_text: OnText = ...,
        on_logprobs: OnLogprobs = ...,
        on_progress: Progress = ...,
        cancelled: Cancelled = ...,
    ) -> Reply:
        """Answers the last turn of a conversation.

        Args:
            messages: all turns, a user's first and last.
            picture: shown with the first turn.
            options: how to generate.
            max_slices: the most slices that the picture is cut into; see `limit_slices`.
            on_text: called with every piece of the answer; together they are the answer's text.
            on_logprobs: called for every token before its text, if the options ask for logprobs.
            on_progress: receives the progress of the picture and the prompt, a `Stage` each.
            cancelled: asked again and again; true ends the answer there.

        Raises:
            PromptError: the conversation is malformed or its last turn exceeds the window.
            PictureError: the model takes no pictures.
            ConfigError: the model cannot cut a picture into so many slices.
        """

    def reset(self) -> None:
        """Forgets the cache; pictures stay encoded."""

    def close(self) -> None:
        """Ends what runs the model."""


def nothing() -> Reply:
    """Returns the empty answer to a question whose picture was cancelled."""
    statistics = Statistics(
        encode_ms=0.0,
        prefill_ms=0.0,
        decode_ms=0.0,
        prompt_tokens=0,
        reused_tokens=0,
        generated_tokens=0,
        decode_steps=0,
        stop=Stop.CANCELLED,
    )
    return Reply("", [], statistics)


def check_window(window: int) -> None:
    """Raises PromptError unless a context window has room for tokens."""
    if window < 1:
        raise PromptError(f"context window is {window}; expected a positive number of tokens")


def require_vision(config: ModelConfig) -> VisionConfig:
    """Returns the vision encoder's geometry, or raises PictureError for a decoder alone."""
    if config.vision is None:
        raise PictureError(
            f"a picture was given to a {config.architecture}, which has no vision encoder; "
            "leave the picture out, or take a MiniCPM-V"
        )
    return config.vision


def _rate(tokens: int, ms: float) -> float:
    return tokens / ms * 1000 if ms > 0 else 0.0
