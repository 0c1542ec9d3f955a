"""`serve` with the model of `tests.web_stand_in`, which computes nothing.

Besides what that one understands, `options` is answered with how it was to be generated, and
`mistake` fails as no error of the toolkit's does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from PIL import Image

from convert.config import ModelConfig
from runtime.chat_command import SETTINGS
from runtime.defaults import GenerationDefaults
from runtime.loader import Loaded
from runtime.prompt import Message
from runtime.sampling import GenerationOptions
from runtime.serve.app import Served
from runtime.serve.run import serve
from runtime.session import OnProgress, Reply
from runtime.web.model import Model
from tests.tiny import tiny_config
from tests.web_stand_in import Repeating

NAME = "stand-in"


class Answering(Repeating):
    """A session; see above."""

    def reply(
        self,
        messages: Sequence[Message],
        picture: Image.Image | None,
        options: GenerationOptions,
        on_progress: OnProgress = lambda stage, done, total: None,
        **hooks: Any,
    ) -> Reply:
        question = messages[-1]["content"]
        if question == "mistake":
            raise ZeroDivisionError("a secret of the server's")
        if question == "options":
            asked: Message = {"role": "user", "content": repr(options)}
            return super().reply([asked], picture, options, on_progress=on_progress, **hooks)
        return super().reply(messages, picture, options, on_progress=on_progress, **hooks)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--waiting", type=int, default=2)
    parser.add_argument("--key")
    args = parser.parse_args()

    def load(threads: int | None) -> Loaded:
        config = ModelConfig.from_json(tiny_config())

        def open_session(*, window: int, as_original: bool = False) -> Answering:
            return Answering(config, window=window)

        tokenizer: Any = None  # the session reads no text
        return Loaded(config, open_session, tokenizer, GenerationDefaults.load(), "a stand-in")

    serve(
        Model(load, bundle=None, source="nothing"),
        Served(name=NAME, created=1, settings=GenerationDefaults.load().named(SETTINGS)),
        host="127.0.0.1",
        port=0,
        key=args.key,
        window=1024,
        waiting=args.waiting,
        on_start=lambda address: print(address, flush=True),
    )
    sys.exit(0)


if __name__ == "__main__":
    main()
