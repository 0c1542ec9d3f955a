"""What verify asks a model: conversations, most of them about a picture."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from convert.calibrate.samples import CalibrationError, read_samples
from convert.checkpoint.config import VisionConfig
from quantize.errors import ToolkitError
from runtime.demo.questions import LANGUAGES, random_example
from runtime.demo.scenes import draw, random_scene
from runtime.inputs.prompt import Message


class DataError(ToolkitError):
    """A file of the user's own questions cannot be read, or has a bad line."""


@dataclass(frozen=True)
class Case:
    """One conversation, and the picture that it is about."""

    name: str
    messages: tuple[Message, ...]
    picture: Callable[[], Image.Image] | None = None
    picture_digest: str = ""  # tells pictures apart
    answer: str = ""  # that the user's file gives

    def open(self) -> Image.Image | None:
        """Decodes the picture.

        Raises:
            PictureError: it is none any more.
        """
        return None if self.picture is None else self.picture()

    @property
    def digest(self) -> str:
        """Tells whether a result of an earlier run is of this case."""
        text = json.dumps([self.messages, self.picture_digest])
        return hashlib.sha256(text.encode()).hexdigest()


def built_in_cases(settings: Mapping[str, Any], vision: VisionConfig | None) -> list[Case]:
    """Returns drawn pictures with a question in each language, or plain questions.

    Args:
        settings: `built_in` of `configs/verify.json`.
        vision: how the model takes pictures: one that cuts them gets large ones, too; None for a
            decoder-only model.
    """
    if vision is None:
        return [
            Case(f"text {i + 1}", ({"role": "user", "content": text},))
            for i, text in enumerate(settings["text_prompts"])
        ]
    cases = []
    for i in range(settings["pictures"]):
        rng = np.random.default_rng([settings["seed"], i])
        scene = random_scene(rng)
        picture = draw(scene, rng).picture
        if vision.slices is not None:
            side, sizes = vision.slices.scale_resolution, settings["squares"]
            width, height = (round(side * length) for length in sizes[i % len(sizes)])
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        digest = hashlib.sha256(picture.tobytes()).hexdigest()
        for language in LANGUAGES:
            example = random_example(scene, language, rng)
            name = f"picture {i + 1}, {language}"
            cases.append(Case(name, example.messages, picture.copy, digest))
    return cases


def read_cases(path: Path, *, with_pictures: bool, skip_bad: bool) -> list[Case]:
    """Reads the user's own pictures and questions, in the format of calibration's samples.

    Args:
        path: JSON lines; see `convert.calibrate.samples.read_samples`.
        with_pictures: false for a decoder-only model.
        skip_bad: warn of lines that cannot be used, and go on.

    Raises:
        DataError: no such file, nothing in it, or a bad line, by its number.
    """
    try:
        samples = read_samples(path, pictures=with_pictures, skip_bad=skip_bad)
    except CalibrationError as error:
        raise DataError(str(error)) from error
    return [
        Case(sample.where, sample.messages, sample.picture, sample.picture_digest, sample.answer)
        for sample in samples
    ]
