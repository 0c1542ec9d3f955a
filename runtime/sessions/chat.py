"""The Python API of the original: `OmniLMMChat(...).chat({...})` and `model.chat(...)`."""

from __future__ import annotations

import base64
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from PIL import Image

from convert.support.closing import Closing
from convert.support.regular_file import read_regular
from convert.support.strict_json import parse_json
from runtime.engine_client.options import EngineOptions
from runtime.inputs.base64_text import base64_bytes
from runtime.inputs.defaults import CHAT_CLASS
from runtime.inputs.generation_options import GenerationOptions
from runtime.inputs.picture import open_picture
from runtime.inputs.picture_format import PictureError
from runtime.inputs.prompt import Message, PromptError, Tokenizer
from runtime.inputs.slices import limit_slices
from runtime.sessions.loader import load
from runtime.sessions.session import Session


class ChatModel(Closing):
    """A model with the original's `chat` function.

    It keeps the cache of its latest conversation: a call that continues it computes only what is
    new, and a picture is encoded once. A bundle's engine is a process of its own, which ends with
    `close`, at the end of a `with`, or with the object.
    """

    def __init__(
        self,
        source: str | Path | None = None,
        *,
        engine: str | None = None,
        threads: int | None = None,
        serial: str | None = None,
        cpu: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        settings: str | None = None,
        window: int | None = None,
        as_original: bool = False,
    ) -> None:
        """Loads a model.

        Args:
            source: a checkpoint's folder or hub id, a bundle, or None for the demo checkpoint.
            engine: `local`, `qemu`, `adb`, `hdc` or `reference`; by default what fits the source.
            threads: of the engine; by default as many as it finds best.
            serial: of the phone, for `adb` and `hdc`; by default the only one, or for `adb`
                $ANDROID_SERIAL.
            cpu: that qemu emulates, for `qemu`, in its words; by default the newest it knows.
            device: cpu, mps or cuda, for the reference; by default the fastest that is there.
            dtype: float32, float16 or bfloat16, for the reference.
            settings: whose generation defaults to use, a name in `configs/generation.json`; by
                default those of the original code of this model.
            window: tokens that a token may see; by default that of `configs/generation.json`.
            as_original: cut prompts to 2048 ids, let nothing slide out of the window, and take
                turns in any order behind the first, empty ones too.

        Raises:
            ToolkitError: the source cannot be opened, or an argument does not fit it.
        """
        options = EngineOptions(engine=engine, threads=threads, serial=serial, cpu=cpu)
        loaded = load(source, options, device=device, dtype=dtype)
        self.tokenizer = loaded.tokenizer
        self.description = loaded.description
        self._loaded, self._window, self._as_original = loaded, window, as_original
        self._settings = loaded.defaults.named(
            loaded.defaults.settings if settings is None else settings
        )
        self._tokens = self._window_for(self._settings.max_new_tokens)
        self.session = self._open()

    def close(self) -> None:
        """Ends the model's engine; another question starts it again."""
        self.session.close()

    def chat(
        self,
        image: Image.Image | None,
        msgs: Sequence[Message] | str,
        context: object = None,
        tokenizer: Tokenizer | None = None,
        vision_hidden_states: None = None,
        max_new_tokens: int | None = None,
        sampling: bool | None = None,
        *,
        max_slices: int | None = None,
        seed: int | None = None,
        on_text: Callable[[str], None] = lambda text: None,
        **kwargs: Any,
    ) -> tuple[str, list[Message], dict[str, Any]]:
        """Answers the last of the messages; arguments stand as the original has them.

        Args:
            image: shown with the first message; None to ask without a picture.
            msgs: the whole conversation, or its JSON. The answer is appended to a list.
            context: ignored, as by the original: `msgs` says it all.
            tokenizer: None, or this model's own: another one's ids would mean something else.
            vision_hidden_states: None: an encoded picture is remembered without.
            max_new_tokens: longest answer; by default as the settings say.
            sampling: whether to sample or to search with beams; by default as the settings say.
            max_slices: the most slices that the picture is cut into, for MiniCPM-V 2.0: 1 (the
                overview only) to the model's own limit, the default. Fewer take less time and fewer
                tokens, but show less detail.
            seed: makes sampling repeatable.
            on_text: called with the answer's pieces as they come; all at once after beam search.
            kwargs: other values for the keys that the chosen settings have.

        Returns:
            The answer; the messages with the answer, `msgs` itself where it is a list; the settings
            that were used.

        Raises:
            ToolkitError: the messages or the settings are not right.
        """
        if tokenizer not in (None, self.tokenizer):
            raise PromptError(
                f"tokenizer is a {type(tokenizer).__name__}; expected None or the model's own, "
                "`model.tokenizer`: others give ids that the model was not trained with"
            )
        if vision_hidden_states is not None:
            raise PromptError(
                f"vision_hidden_states is a {type(vision_hidden_states).__name__}; expected None: "
                "give the picture, which is encoded once and remembered"
            )
        messages = _messages(msgs)
        config = self._settings.choose(sampling, kwargs)
        limit = self._settings.max_new_tokens if max_new_tokens is None else max_new_tokens
        options = GenerationOptions(max_new_tokens=limit, seed=seed, **config)
        self._make_room(limit)
        reply = self.session.reply(messages, image, options, max_slices=max_slices, on_text=on_text)
        messages.append({"role": "assistant", "content": reply.text})
        return reply.text, messages, config

    def _window_for(self, max_new_tokens: int) -> int:
        return self._loaded.defaults.window_for(
            self._window, as_original=self._as_original, max_new_tokens=max_new_tokens
        )

    def _open(self) -> Session:
        session = self._loaded.open_session(window=self._tokens, as_original=self._as_original)
        weakref.finalize(self, session.close)
        return session

    def _make_room(self, max_new_tokens: int) -> None:
        """Opens another session where a longer answer asks for a longer window."""
        tokens = self._window_for(max_new_tokens)
        if tokens > self._tokens:
            self.session.close()
            self._tokens = tokens
            self.session = self._open()


class OmniLMMChat(Closing):
    """The original's chat class: a picture in base64 and messages in JSON, one answer."""

    def __init__(
        self,
        model_path: str | Path | None = None,
        *,
        engine: str | None = None,
        threads: int | None = None,
        serial: str | None = None,
        cpu: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        window: int | None = None,
        max_slices: int | None = None,
        as_original: bool = False,
    ) -> None:
        """Loads a checkpoint or a bundle; see `ChatModel`, and its `chat` for `max_slices`."""
        self._max_slices = max_slices
        self.model = ChatModel(
            model_path,
            engine=engine,
            threads=threads,
            serial=serial,
            device=device,
            dtype=dtype,
            settings=CHAT_CLASS,
            window=window,
            as_original=as_original,
        )
        try:
            limit_slices(self.model.session.config.vision, max_slices)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the model's engine; another question starts it again."""
        self.model.close()

    def chat(self, inputs: Mapping[str, Any]) -> str:
        """Answers `{"image": base64, "question": JSON of the messages}`.

        Raises:
            PictureError: the picture is no base64, or no picture.
            PromptError: the question is missing, or no JSON of messages.
        """
        if not isinstance(inputs, Mapping) or not isinstance(inputs.get("question"), str):
            raise PromptError(
                'the input has no "question"; expected {"image": base64, "question": JSON}'
            )
        image = inputs.get("image")
        picture = None if image is None else open_picture(_decode(image))
        return self.model.chat(picture, inputs["question"], max_slices=self._max_slices)[0]


def img2base64(file_name: str | Path) -> bytes:
    """Returns a file in base64.

    Raises:
        PictureError: it cannot be read.
    """
    try:
        return base64.b64encode(read_regular(file_name))
    except OSError as error:
        raise PictureError(f"{file_name}: cannot be read: {error.strerror or error}") from error


def _decode(image: object) -> bytes:
    if not isinstance(image, (str, bytes)):
        raise PictureError(f"image is a {type(image).__name__}; expected a file's bytes in base64")
    try:
        return base64_bytes(image if isinstance(image, str) else image.decode("ascii"))
    except ValueError as error:
        raise PictureError(f"image is no base64: {error}; try img2base64(path)") from error


def _messages(msgs: Sequence[Message] | str) -> list[Message]:
    if isinstance(msgs, str):
        try:
            msgs = parse_json(msgs)
        except ValueError as error:
            raise PromptError(f"the messages are not JSON: {error}") from error
    if not isinstance(msgs, (list, tuple)):
        raise PromptError(
            f"the messages are a {type(msgs).__name__}; expected a list of "
            '{"role": "user", "content": "..."}'
        )
    return cast("list[Message]", msgs if isinstance(msgs, list) else list(msgs))
