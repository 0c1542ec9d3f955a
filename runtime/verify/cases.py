"""What verify asks a model: conversations, most of them about a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from runtime.demo.questions import LANGUAGES, random_example
from runtime.demo.scenes import draw, random_scene
from runtime.prompt import Message


@dataclass(frozen=True)
class Case:
    """One conversation, and the picture that it is about."""

    name: str
    picture: Image.Image | None
    messages: tuple[Message, ...]


def built_in_cases(settings: Mapping[str, Any], *, with_pictures: bool) -> list[Case]:
    """Returns drawn pictures with a question in each language, or plain questions.

    Args:
        settings: `built_in` of `configs/verify.json`.
        with_pictures: false for a decoder-only model.
    """
    if not with_pictures:
        return [
            Case(f"text {i + 1}", None, ({"role": "user", "content": text},))
            for i, text in enumerate(settings["text_prompts"])
        ]
    cases = []
    for i in range(settings["pictures"]):
        rng = np.random.default_rng([settings["seed"], i])
        scene = random_scene(rng)
        picture = draw(scene, rng).picture
        for language in LANGUAGES:
            example = random_example(scene, language, rng)
            cases.append(Case(f"picture {i + 1}, {language}", picture, example.messages))
    return cases
