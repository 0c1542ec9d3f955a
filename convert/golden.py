"""Golden prompts: the host engine's answers, against which engines elsewhere check themselves."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from convert.bundle.manifest import GOLDEN, GOLDEN_PICTURE, Bundle
from convert.bundle.program import Program, forbidding_mount
from convert.bundle.targets import is_host
from convert.checkpoint.config import CONFIGS
from convert.support.json_text import json_text
from convert.support.progress import Progress
from runtime.engine_client.client import EngineClient, Float32, engine_command
from runtime.engine_client.options import LOCAL
from runtime.engine_client.picture_taps import PictureTaps
from runtime.engine_client.protocol import Field, Tap
from runtime.inputs.picture import open_picture
from runtime.inputs.picture_file import write_picture_file
from runtime.inputs.prompt import Message, Tokenizer

PROMPTS = CONFIGS / "golden.json"
FORMAT, FORMAT_VERSION = "minicpmv-golden", 2
_WINDOW = 1024  # tokens; no golden prompt is near it


def can_answer(bundle: Bundle, target: str) -> bool:
    """Tells whether a bundle's engine runs on this machine, and has a tokenizer."""
    return is_host() and target in bundle.manifest.targets and bundle.tokenizer is not None


def write_golden(bundle: Bundle, target: str, progress: Progress) -> list[str]:
    """Answers the prompts of `configs/golden.json` greedily, and writes prompts and answers.

    With each answer go the logits of the likeliest tokens; see `runtime/engine/PROTOCOL.md`.

    Args:
        bundle: its engine answers, and its folder gets the files.
        target: one whose engine runs on this machine.
        progress: receives the prompts answered.

    Returns:
        The names of the new files.

    Raises:
        ToolkitError: the engine fails.
    """
    whole = golden_questions(with_pictures=bundle.config.vision is not None)
    asked, top = whole["prompts"], golden_settings()["top"]
    names = [GOLDEN]
    with (
        _where_it_may_run(bundle.program(target)) as program,
        EngineClient(engine_command(LOCAL, program)) as engine,
    ):
        engine.load(bundle.path, window=_WINDOW)
        image = picture = None
        if bundle.config.vision is not None:
            progress("golden answers", 0, len(asked))
            picture = golden_picture()
            write_picture_file(bundle.path / GOLDEN_PICTURE, picture)
            names.append(GOLDEN_PICTURE)
            image = engine.image(picture)["image"]
        for done, prompt in enumerate(asked):
            progress("golden answers", done, len(asked))
            messages, limit = prompt["messages"], prompt["max_new_tokens"]
            shown, seen = (image, picture) if prompt["image"] else (None, None)
            answer = engine.chat(messages, image=shown, max_new_tokens=limit)
            prompt["ids"] = answer.ids
            prompt["steps"] = _steps(engine, bundle, messages, seen, answer.ids, top)
    progress("golden answers", len(asked), len(asked))
    (bundle.path / GOLDEN).write_text(json_text(whole) + "\n", "utf-8")
    return names


def golden_settings() -> dict[str, Any]:
    """Reads `configs/golden.json`."""
    settings: dict[str, Any] = json.loads(PROMPTS.read_text("utf-8"))
    return settings


def golden_questions(*, with_pictures: bool) -> dict[str, Any]:
    """Returns the content of a bundle's `golden.json`, without the engine's answers and logits.

    Args:
        with_pictures: whether to ask about the picture, too; False for a decoder-only model.
    """
    settings = golden_settings()
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "tolerance": settings["tolerance"],
        "prompts": [
            {
                "messages": [{"role": "user", "content": prompt["text"]}],
                "image": GOLDEN_PICTURE if prompt["picture"] else None,
                "max_new_tokens": settings["max_new_tokens"],
            }
            for prompt in settings["prompts"]
            if with_pictures or not prompt["picture"]
        ],
    }


def golden_picture() -> Image.Image:
    """Returns the picture that the golden prompts ask about."""
    return open_picture(CONFIGS / golden_settings()["picture"])


@contextmanager
def _where_it_may_run(program: Program) -> Iterator[Program]:
    """Yields a program, or a copy of it if the bundle is on a file system mounted `noexec`.

    Converting to such a place must work, since the bundle may be meant for phones.
    """
    if forbidding_mount(program.path) is None:
        yield program
        return
    with tempfile.TemporaryDirectory() as folder:
        yield replace(program, path=Path(shutil.copy(program.path, folder)))


def _steps(
    engine: EngineClient,
    bundle: Bundle,
    messages: Sequence[Message],
    picture: Image.Image | None,
    ids: Sequence[int],
    top: int,
) -> list[dict[str, Any]]:
    """Returns the likeliest tokens and their logits at the position of each token of an answer."""
    assert bundle.tokenizer is not None
    tokens, grid = list[Float32](), None
    if picture is not None:
        assert bundle.config.vision is not None
        taps = PictureTaps(engine, bundle.config.vision)
        images, grid = taps.images(picture)
        tokens = [taps.image_tokens(pixels) for pixels in images]
    prompt = Tokenizer(bundle.tokenizer, bundle.config).prompt(
        messages, len(tokens[0]) if tokens else 0, grid=grid
    )
    embeds = engine.tap(Tap.EMBED, [*prompt.ids, *ids])
    for start, image in zip(prompt.image_starts, tokens, strict=True):
        embeds[start : start + len(image)] = image
    hidden = engine.tap(Tap.LAYERS, embeds, {Field.WINDOW: _WINDOW, Field.PINNED: 1})[-1]
    first = len(prompt.ids) - 1  # whose logits predict the first token of the answer
    steps = []
    for row in engine.tap(Tap.LOGITS, hidden[first:])[: len(ids)]:
        likeliest = np.argsort(-row, kind="stable")[:top]
        steps.append({"top": [{"id": int(i), "logit": round(float(row[i]), 4)} for i in likeliest]})
    return steps
