"""Golden prompts: what a bundle's engine answers here, so that it can check itself elsewhere."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable

from convert.bundle import GOLDEN, GOLDEN_PICTURE, Bundle
from convert.config import CONFIGS
from runtime.engine_client import EngineClient, engine_command
from runtime.engine_options import LOCAL
from runtime.picture import open_picture
from runtime.picture_file import write_picture_file
from runtime.prompt import Message

PROMPTS = CONFIGS / "golden.json"
FORMAT, FORMAT_VERSION = "minicpmv-golden", 1
_WINDOW = 1024  # tokens; no golden prompt is near it


def can_answer(bundle: Bundle, target: str) -> bool:
    """Says whether a bundle's engine runs here and can read text."""
    here = (platform.system(), platform.machine()) == ("Linux", "x86_64")
    return here and target in bundle.manifest.targets and bundle.tokenizer is not None


def write_golden(
    bundle: Bundle, target: str, progress: Callable[[str, int, int], None]
) -> list[str]:
    """Answers the prompts of `configs/golden.json` greedily, and writes prompts and answers.

    Args:
        bundle: whose folder gets the files; its engine answers.
        target: whose engine runs on this machine.
        progress: counts prompts.

    Returns:
        The names of the files.

    Raises:
        ToolkitError: the engine fails.
    """
    settings = json.loads(PROMPTS.read_text("utf-8"))
    asked = [p for p in settings["prompts"] if bundle.config.vision is not None or not p["picture"]]
    names, prompts = [GOLDEN], []
    with EngineClient(engine_command(LOCAL, bundle.program(target))) as engine:
        engine.load(bundle.path, window=_WINDOW)
        image = None
        if bundle.config.vision is not None:
            progress("golden answers", 0, len(asked))
            picture = open_picture(CONFIGS / settings["picture"])
            write_picture_file(bundle.path / GOLDEN_PICTURE, picture)
            names.append(GOLDEN_PICTURE)
            image = engine.image(picture)["image"]
        for done, prompt in enumerate(asked):
            progress("golden answers", done, len(asked))
            messages: list[Message] = [{"role": "user", "content": prompt["text"]}]
            limit = settings["max_new_tokens"]
            shown = image if prompt["picture"] else None
            answer = engine.chat(messages, image=shown, max_new_tokens=limit)
            prompts.append(
                {
                    "messages": messages,
                    "image": GOLDEN_PICTURE if prompt["picture"] else None,
                    "max_new_tokens": limit,
                    "ids": answer.ids,
                }
            )
    progress("golden answers", len(asked), len(asked))
    whole = {"format": FORMAT, "format_version": FORMAT_VERSION, "prompts": prompts}
    (bundle.path / GOLDEN).write_text(json.dumps(whole, ensure_ascii=False) + "\n", "utf-8")
    return names
