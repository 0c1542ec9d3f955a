"""Conversations with a bundle's engine, wherever it runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from PIL import Image

from convert.bundle.errors import BundleError
from convert.checkpoint.config import ModelConfig
from convert.support.progress import Progress, silent
from quantize.errors import ConfigError, ToolkitError
from runtime.engine_client.client import EngineAnswer, EngineClient, EngineError, EngineGoneError
from runtime.engine_client.phone_shell import PhoneAwayError, PhoneError
from runtime.engine_client.place import Device
from runtime.engine_client.process import EngineAwayError, EngineDiedError
from runtime.engine_client.protocol import ErrorCode, Field
from runtime.inputs.callbacks import Cancelled, OnLogprobs, OnText
from runtime.inputs.generation_options import GenerationOptions
from runtime.inputs.picture_file import rgb_strips
from runtime.inputs.picture_format import PictureError
from runtime.inputs.prompt import Message, PromptError, check_question
from runtime.inputs.slices import limit_slices
from runtime.sessions.session import Reply, Statistics, check_window, nothing, require_vision

_AWAY_TRIES = 5  # of one request
T = TypeVar("T")

# What a user can mend, by the engine's code for it.
_ERRORS: dict[str, type[ToolkitError]] = {
    ErrorCode.PROMPT_TOO_LONG: PromptError,
    ErrorCode.INVALID_TEXT: PromptError,
    ErrorCode.INVALID_PICTURE: PictureError,
    ErrorCode.INVALID_BUNDLE: BundleError,
    ErrorCode.OTHER_PROGRAM: BundleError,
}


class EngineSession:
    """A running engine with a bundle; see `Session`.

    An engine that died is started again by the next question, which carries the conversation: if
    it died while idle, no error is reported.
    """

    def __init__(
        self, place: Device, config: ModelConfig, *, window: int, as_original: bool = False
    ) -> None:
        """Starts the engine and loads the bundle.

        Args:
            place: where; it must be prepared.
            config: the bundle's.
            window: tokens that a token may see.
            as_original: cut long prompts silently, and take turns in any order.

        Raises:
            ToolkitError: the engine does not start, or refuses the bundle.
        """
        check_window(window)
        self.config = config
        self._place, self._window, self._as_original = place, window, as_original
        # The latest picture: its digest, the limit of slices, and its name.
        self._picture: tuple[bytes, int | None, str] | None = None
        self._running: EngineClient | None = None
        self.ask(lambda client: client)

    def client(self) -> EngineClient:
        """Returns the running engine; starts one that has ended."""
        if self._running is not None and self._running.has_ended:  # while nobody asked it
            self.close()
        if self._running is None:
            self._picture = None
            self._place.await_return("the engine cannot be started")
            running = self._place.start()
            try:
                with translate_engine_errors():
                    running.load(self._place.bundle, window=self._window)
            except BaseException:
                running.close()
                raise
            self._running = running
        return self._running

    def ask(self, work: Callable[[EngineClient], T]) -> T:
        """Has the engine do what needs nothing that it did before.

        If its machine goes away meanwhile, this waits until it is back, starts an engine there, and
        asks again.

        Args:
            work: asks the engine that it is given.

        Raises:
            ToolkitError: the machine does not come back, or goes away again and again.
        """
        for left in reversed(range(_AWAY_TRIES)):
            try:
                return work(self.client())
            except (EngineAwayError, EngineGoneError, PhoneError) as error:
                self.close()
                if isinstance(error, PhoneAwayError) or not left:
                    raise
        raise AssertionError("the last try returns or raises")

    def reply(
        self,
        messages: Sequence[Message],
        picture: Image.Image | None,
        options: GenerationOptions,
        *,
        max_slices: int | None = None,
        on_text: OnText = lambda text: None,
        on_logprobs: OnLogprobs = lambda step: None,
        on_progress: Progress = silent,
        cancelled: Cancelled = lambda: False,
    ) -> Reply:
        """See `Session`.

        Raises:
            ConfigError: beam search, which the engine has not.
            EngineDiedError: the engine ended; tells its last words.
        """
        check_question(messages, as_original=self._as_original)
        if options.num_beams > 1:
            raise ConfigError(
                f"num_beams is {options.num_beams}, but the engine has no beam search: choose "
                "sampling, or one beam, or --engine reference"
            )
        if picture is not None:
            require_vision(self.config)
        limit_slices(self.config.vision, max_slices)
        hooks = (on_text, on_logprobs, on_progress, cancelled)
        try:
            return self._reply(messages, picture, options, max_slices, *hooks)
        except EngineGoneError:
            if cancelled():
                raise
            return self._reply(messages, picture, options, max_slices, *hooks)

    def _reply(
        self,
        messages: Sequence[Message],
        picture: Image.Image | None,
        options: GenerationOptions,
        max_slices: int | None,
        on_text: OnText,
        on_logprobs: OnLogprobs,
        on_progress: Progress,
        cancelled: Cancelled,
    ) -> Reply:
        client = self.client()
        try:
            with translate_engine_errors():
                name, encode_ms = self._encode(client, picture, max_slices, on_progress, cancelled)
                answer = client.chat(
                    messages,
                    image=name,
                    max_new_tokens=options.max_new_tokens,
                    options=_fields(options) | {Field.AS_ORIGINAL: self._as_original},
                    on_progress=on_progress,
                    on_text=on_text,
                    on_logprobs=on_logprobs,
                    cancelled=cancelled,
                )
        except _PictureCancelledError:
            return nothing()
        except EngineDiedError:
            self.close()
            raise
        return _reply(answer, encode_ms)

    def reset(self) -> None:
        """See `Session`."""
        try:
            if self._running is not None:
                self._running.reset()
        except EngineDiedError:  # with it went its cache
            self.close()

    def close(self) -> None:
        """Ends the engine."""
        running, self._running = self._running, None
        if running is not None:
            running.close()

    def _encode(
        self,
        client: EngineClient,
        picture: Image.Image | None,
        max_slices: int | None,
        on_progress: Progress,
        cancelled: Cancelled,
    ) -> tuple[str | None, float]:
        """Returns a picture's name for the engine, and the milliseconds that encoding it took."""
        if picture is None:
            return None, 0.0
        digest = _digest(picture)
        if self._picture is not None and self._picture[:2] == (digest, max_slices):
            return self._picture[2], 0.0
        if cancelled():  # a fast engine is done before it is polled
            raise _PictureCancelledError
        try:
            line = client.image(picture, on_progress, cancelled, max_slices=max_slices)
        except EngineError as error:
            if error.code == ErrorCode.CANCELLED:
                raise _PictureCancelledError from error
            raise
        self._picture = digest, max_slices, line[Field.IMAGE]
        return line[Field.IMAGE], 0.0 if line[Field.REMEMBERED] else line[Field.ENCODE_MS]


class _PictureCancelledError(Exception):
    """There will be no answer."""


@contextmanager
def translate_engine_errors() -> Iterator[None]:
    """Turns the engine's errors into those that the reference has for the same mistakes."""
    try:
        yield
    except EngineError as error:
        if error.code in _ERRORS:
            raise _ERRORS[error.code](str(error)) from error
        raise


def _fields(options: GenerationOptions) -> dict[str, Any]:
    """Returns the fields of a request that say how to sample."""
    return {
        Field.DO_SAMPLE: options.do_sample,
        Field.TEMPERATURE: options.temperature,
        Field.TOP_K: options.top_k,
        Field.TOP_P: options.top_p,
        Field.REPETITION_PENALTY: options.repetition_penalty,
        Field.SEED: options.seed,
        Field.STOP: list(options.stop),
        Field.TOP_LOGPROBS: options.top_logprobs,
    }


def _digest(picture: Image.Image) -> bytes:
    """Returns what tells pictures apart; much cheaper than sending one again."""
    digest = hashlib.blake2b(repr(picture.size).encode(), digest_size=16)
    for strip in rgb_strips(picture):
        digest.update(strip)
    return digest.digest()


def _reply(answer: EngineAnswer, encode_ms: float) -> Reply:
    about = answer.statistics
    return Reply(
        answer.text,
        answer.ids,
        Statistics(
            encode_ms=encode_ms,
            prefill_ms=about[Field.PREFILL_MS],
            decode_ms=about[Field.DECODE_MS],
            prompt_tokens=about[Field.PROMPT_TOKENS],
            reused_tokens=about[Field.REUSED_TOKENS],
            generated_tokens=about[Field.GENERATED_TOKENS],
            decode_steps=about[Field.DECODE_STEPS],
            stop=answer.stop,
            peak_rss_bytes=about[Field.PEAK_RSS_BYTES],
        ),
    )
