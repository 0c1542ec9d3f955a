"""`serve` with the model of `tests.support.web_stand_in`, which computes nothing.

Besides what that one understands, `options` is answered with how it was to be generated, and
`mistake` fails as no error of the toolkit's does.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from convert.checkpoint.config import ModelConfig
from convert.support.progress import Progress, silent
from runtime.commands.chat_options import SETTINGS
from runtime.inputs.callbacks import OnLogprobs, OnText
from runtime.inputs.defaults import GenerationDefaults
from runtime.inputs.generation_options import GenerationOptions
from runtime.inputs.logprobs import StepLogprobs, TokenLogprob
from runtime.inputs.prompt import UNKNOWN_ID, Message, Tokenizer
from runtime.serve.app import Served
from runtime.serve.run import serve
from runtime.sessions.loader import Loaded
from runtime.sessions.session import Reply
from runtime.web.model import LoadedModel
from tests.support.slices import TINY_SLICES
from tests.support.tiny_config import tiny_config
from tests.support.tiny_tokenizer import tokenizer_model
from tests.support.web_stand_in import Repeating

NAME = "stand-in"


class Answering(Repeating):
    """A session; see above."""

    def reply(
        self,
        messages: Sequence[Message],
        picture: Image.Image | None,
        options: GenerationOptions,
        on_progress: Progress = silent,
        on_text: OnText = lambda text: None,
        on_logprobs: OnLogprobs = lambda step: None,
        **hooks: Any,
    ) -> Reply:
        hooks |= {"on_progress": on_progress, "on_text": on_text}
        if options.top_logprobs is not None:
            hooks["on_text"] = _telling(on_text, on_logprobs, options.top_logprobs)
        reply = self._reply(messages, picture, options, hooks)
        if options.top_logprobs is not None:  # a token without a text
            on_logprobs(StepLogprobs(TokenLogprob(UNKNOWN_ID, -0.25), ()))
        return reply

    def _reply(
        self,
        messages: Sequence[Message],
        picture: Image.Image | None,
        options: GenerationOptions,
        hooks: dict[str, Any],
    ) -> Reply:
        question = messages[-1]["content"]
        if question == "mistake":
            raise ZeroDivisionError("a secret of the server's")
        if question == "options":
            asked: Message = {"role": "user", "content": repr(options)}
            return super().reply([asked], picture, options, **hooks)
        return super().reply(messages, picture, options, **hooks)


def _telling(on_text: OnText, on_logprobs: OnLogprobs, count: int) -> OnText:
    """Reports each piece of text as one token."""

    def tell(text: str) -> None:
        top = tuple(TokenLogprob(10 + i, -0.5 - i) for i in range(count))
        on_logprobs(StepLogprobs(TokenLogprob(10, -0.5), top))
        on_text(text)

    return tell


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--waiting", type=int, default=2)
    parser.add_argument("--key")
    parser.add_argument("--slices", action="store_true", help="the model cuts pictures")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--cors", action="append", default=[])
    args = parser.parse_args()

    with tempfile.NamedTemporaryFile() as file:
        file.write(tokenizer_model())
        file.flush()
        tokenizer = Tokenizer(Path(file.name))

    def load(threads: int | None) -> Loaded:
        config = ModelConfig.from_json(tiny_config(**(TINY_SLICES if args.slices else {})))

        def open_session(*, window: int, as_original: bool = False) -> Answering:
            return Answering(config, window=window)

        return Loaded(config, open_session, tokenizer, GenerationDefaults.load(), "a stand-in")

    serve(
        LoadedModel(load, bundle=None, source="nothing"),
        Served(
            name=NAME,
            created=1,
            settings=GenerationDefaults.load().named(SETTINGS),
            tokenizer=tokenizer,
        ),
        host=args.host,
        port=0,
        key=args.key,
        origins=args.cors,
        window=1024,
        max_slices=None,
        waiting=args.waiting,
        on_start=lambda address: print(address, flush=True),
    )
    sys.exit(0)


if __name__ == "__main__":
    main()
