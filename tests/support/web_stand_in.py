"""The page's server with a fake model that does what the question says.

`count` counts until it is stopped, `wait` stops halfway through a picture until it is cancelled,
`signal 9` ends in the middle, `refuse CODE` is refused as a prompt that is too long; all else is
repeated, with the number of turns before it and the size of the picture. With `--slices` the model
cuts pictures, and says into how many images.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from PIL import Image

from convert.checkpoint.config import ModelConfig
from convert.support.progress import Progress
from runtime.engine_client.process import Death, EngineDiedError
from runtime.engine_client.protocol import Stage, Stop
from runtime.inputs.callbacks import Cancelled, OnLogprobs, OnText
from runtime.inputs.defaults import GenerationDefaults
from runtime.inputs.generation_options import GenerationOptions
from runtime.inputs.prompt import Message, PromptError
from runtime.inputs.slices import limit_slices, plan_cut
from runtime.sessions.loader import Loaded
from runtime.sessions.session import Reply, Statistics, nothing
from runtime.web.files import data_folder
from runtime.web.model import LoadedModel
from runtime.web.serve import serve
from tests.support.tiny_config import tiny_config

_PIECE_SECONDS = 0.02
_BLOCKS = 2  # of the vision encoder
# Small enough that the demo's picture fills every grid.
_SLICES = {"slice_mode": True, "max_slice_nums": 9, "scale_resolution": 56, "patch_size": 14}


class Repeating:
    """A session; see above."""

    def __init__(self, config: ModelConfig, *, window: int, as_original: bool = False) -> None:
        self.config, self._window = config, window

    def reply(
        self,
        messages: Sequence[Message],
        picture: Image.Image | None,
        options: GenerationOptions,
        *,
        max_slices: int | None = None,
        on_text: OnText = lambda text: None,
        on_logprobs: OnLogprobs = lambda step: None,
        on_progress: Progress,
        cancelled: Cancelled,
    ) -> Reply:
        question = messages[-1]["content"]
        if question.startswith("refuse"):
            raise PromptError(f"the window is {self._window}")
        size = ""
        if picture is not None:
            images = _images(picture, self.config, max_slices)
            for done in range(1, _BLOCKS * images + 1):
                on_progress(Stage.ENCODE, done, _BLOCKS * images)
                while question == "wait" and done == _BLOCKS * images // 2:
                    time.sleep(_PIECE_SECONDS)
                    if cancelled():
                        return nothing()
            cut = "" if images == 1 else f" in {images}"
            size = f" seeing {picture.width}x{picture.height}{cut}"
        stop, said = Stop.EOS, ""
        if question == "count":
            while not cancelled():
                said += f"{len(said.split())} "
                on_text(said.split()[-1] + " ")
                time.sleep(_PIECE_SECONDS)
            stop = Stop.CANCELLED
        elif question == "signal 9":
            on_text("half an ans")
            raise EngineDiedError("host: has ended (signal 9)", Death.KILLED)
        else:
            said = f"{len(messages)}: {question}{size}"
            for start in range(0, len(said), 2):
                on_text(said[start : start + 2])
        statistics = Statistics(
            encode_ms=5.0,
            prefill_ms=10.0,
            decode_ms=10.0,
            prompt_tokens=len(messages),
            reused_tokens=0,
            generated_tokens=3,
            decode_steps=2,
            stop=stop,
        )
        return Reply(said, [], statistics)

    def reset(self) -> None:
        """Does nothing: there is no state."""

    def close(self) -> None:
        """Does nothing: there is no process."""


def _images(picture: Image.Image, config: ModelConfig, max_slices: int | None) -> int:
    """Returns how many images a picture becomes."""
    vision = limit_slices(config.vision, max_slices)
    assert vision is not None
    grid = None if vision.slices is None else plan_cut(picture.size, vision).grid
    return 1 if grid is None else 1 + grid[0] * grid[1]


def main() -> None:
    def load(threads: int | None) -> Loaded:
        slices = _SLICES if "--slices" in sys.argv else {}
        config = ModelConfig.from_json(tiny_config(**slices))

        def open_session(*, window: int, as_original: bool = False) -> Repeating:
            return Repeating(config, window=window)

        tokenizer: Any = None  # the session reads no text
        defaults = GenerationDefaults.load().for_model(config)
        return Loaded(config, open_session, tokenizer, defaults, "a stand-in")

    model = LoadedModel(load, bundle=None, source="nothing")
    serve(
        model,
        data_folder(),
        port=0,
        window=model.loaded.defaults.window,
        choices={},
        seed=None,
        picture=None,
        on_start=lambda address: print(address, flush=True),
    )
    sys.exit(0)


if __name__ == "__main__":
    main()
