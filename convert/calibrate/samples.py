"""Calibration samples: conversations with answers, most of them about a picture."""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from convert.checkpoint.config import ModelConfig, VisionConfig
from convert.checkpoint.reader import Checkpoint
from convert.support.json_text import json_lines
from convert.support.regular_file import read_regular
from convert.support.strict_json import parse_json
from quantize.errors import ToolkitError
from runtime.inputs.picture import open_picture
from runtime.inputs.picture_format import PictureError
from runtime.inputs.prompt import Message, PromptError, Tokenizer, check_question
from runtime.inputs.slices import Cut, images_of, plan_cut

_KEYS = {"image", "question", "answer"}
_LINE_BYTES = 1 << 20
_MAX_TOKENS = 2048  # of a sample

_LOG = logging.getLogger(__name__)


class CalibrationError(ToolkitError):
    """A calibration sample is missing, malformed, or does not suit the model."""


@dataclass(frozen=True)
class CalibrationSample:
    """A conversation, its answer, and the picture it is about."""

    messages: tuple[Message, ...]
    answer: str
    where: str  # the line of a file, for error messages
    picture: Callable[[], Image.Image] | None = None
    picture_digest: str = ""
    ids: tuple[int, ...] | None = None  # in place of all that, if the text comes as token ids


@dataclass(frozen=True)
class TokenizedSample:
    """A sample in the form that the decoder takes."""

    ids: Tensor  # (L,) int64, including the image tokens' placeholders
    image_starts: tuple[int, ...] = ()  # where each image's placeholders begin
    picture_digest: str = ""
    images: Callable[[], tuple[Tensor, ...]] | None = None  # each (1, 3, height, width) float32
    patches: tuple[int, ...] = ()  # of each image

    @property
    def digest(self) -> str:
        """A hash that identifies the sample."""
        return hashlib.sha256(self.ids.numpy().tobytes() + self.picture_digest.encode()).hexdigest()


def read_samples(
    path: Path, *, pictures: bool, skip_bad: bool, token_ids: bool = False
) -> list[CalibrationSample]:
    """Reads JSON Lines: `question`, and optionally `answer` and `image`, a path next to the file.

    A question may also be a list of strings, turns of user and assistant, the last a user's.

    Args:
        path: the file.
        pictures: whether the model has a vision encoder.
        skip_bad: skip lines that cannot be used, with a warning.
        token_ids: also take lines that have `ids` alone, for a model whose tokenizer is not
            SentencePiece's.

    Raises:
        CalibrationError: the file does not exist or holds no sample, or a line, given by its
            number, cannot be used.
    """
    samples = []
    lines = list(json_lines(_content(path)))
    for number, line in lines:
        try:
            where = f"{path}, line {number}"
            samples.append(_read_line(line, path, where, pictures, token_ids=token_ids))
        except (CalibrationError, PictureError, PromptError) as error:
            problem = f"{path}, line {number}: {error}"
            if not skip_bad:
                hint = "correct it, or leave out such lines with --skip-bad"
                raise CalibrationError(f"{problem}; {hint}") from error
            _LOG.warning("%s: left out", problem)
    if len(samples) < len(lines):
        left_out = len(lines) - len(samples)
        _LOG.warning("%s: %d of %d lines left out", path, left_out, len(lines))
    if not samples:
        raise CalibrationError(
            f"{path}: holds no usable sample; expected lines such as "
            '{"image": "cat.jpg", "question": "What is this?", "answer": "A cat."}'
        )
    return samples


def conversation(question: str | Sequence[str]) -> tuple[Message, ...]:
    """Returns a question, or turns of user and assistant, as messages.

    Raises:
        PromptError: the last turn is the assistant's, or asks nothing.
    """
    turns = [question] if isinstance(question, str) else question
    roles = itertools.cycle(("user", "assistant"))
    messages: list[Message] = [
        {"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)
    ]
    check_question(messages)
    return tuple(messages)


def tokenize(samples: Sequence[CalibrationSample], checkpoint: Checkpoint) -> list[TokenizedSample]:
    """Returns samples in the form that the decoder takes.

    Raises:
        CalibrationError: the checkpoint has no tokenizer, or a sample is too long.
    """
    path, config = checkpoint.tokenizer, checkpoint.config
    tokenizer = None if path is None else Tokenizer(path, config)
    cuts: dict[str, Cut] = {}  # by picture
    tokenized = []
    for sample in samples:
        if sample.ids is not None:
            tokenized.append(_of_ids(sample, sample.ids, config.decoder.vocab_size))
            continue
        if tokenizer is None:
            raise CalibrationError(
                f"{checkpoint.path}: has no tokenizer.model to tokenize the calibration samples; "
                'give samples as token ids, lines such as {"ids": [1, 5]}, with --calibration, or '
                "choose a method without calibration, --method mse"
            )
        tokenized.append(_tokenize(sample, tokenizer, config, cuts))
    return tokenized


def _tokenize(
    sample: CalibrationSample, tokenizer: Tokenizer, config: ModelConfig, cuts: dict[str, Cut]
) -> TokenizedSample:
    """Tokenizes a sample; `cuts` has those of pictures so far, and gets that of its picture."""
    vision, resampler, picture = config.vision, config.resampler, sample.picture
    if picture is None or vision is None or resampler is None:
        ids = tokenizer.prompt(sample.messages, 0).ids + tokenizer.encode(sample.answer)
        _require_length(sample, len(ids))
        return TokenizedSample(torch.tensor(ids))
    grid, sizes = None, [(vision.image_size, vision.image_size)]
    if vision.slices is not None:
        if sample.picture_digest not in cuts:
            cuts[sample.picture_digest] = _plan_cut(sample.where, picture(), vision)
        cut = cuts[sample.picture_digest]
        grid, sizes = cut.grid, cut.sizes
    prompt = tokenizer.prompt(sample.messages, resampler.query_num, grid=grid)
    ids = prompt.ids + tokenizer.encode(sample.answer)
    _require_length(sample, len(ids))
    return TokenizedSample(
        torch.tensor(ids),
        prompt.image_starts,
        sample.picture_digest,
        lambda: images_of(picture(), vision).pixels,
        tuple(width * height // vision.patch_size**2 for width, height in sizes),
    )


def _plan_cut(where: str, picture: Image.Image, vision: VisionConfig) -> Cut:
    try:
        return plan_cut(picture.size, vision)
    except PictureError as error:
        raise CalibrationError(f"{where}: {error}") from error


def _of_ids(sample: CalibrationSample, ids: Sequence[int], vocabulary: int) -> TokenizedSample:
    wrong = next((i for i in ids if not 0 <= i < vocabulary), None)
    if wrong is not None:
        raise CalibrationError(
            f"{sample.where}: token id {wrong} is not in the model's vocabulary of {vocabulary:,}"
        )
    _require_length(sample, len(ids))
    return TokenizedSample(torch.tensor(ids))


def _require_length(sample: CalibrationSample, tokens: int) -> None:
    if tokens > _MAX_TOKENS:
        raise CalibrationError(
            f"{sample.where}: has {tokens} tokens; at most {_MAX_TOKENS} are allowed"
        )


def _content(path: Path) -> bytes:
    try:
        return read_regular(path)
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read: {error.strerror or error}") from error


def _read_line(
    line: bytes, path: Path, where: str, pictures: bool, *, token_ids: bool
) -> CalibrationSample:
    if len(line) > _LINE_BYTES:
        raise CalibrationError(f"has {len(line):,} bytes; at most {_LINE_BYTES:,} are allowed")
    try:
        raw: Any = parse_json(line)
    except ValueError as error:
        raise CalibrationError(f"not a line of JSON: {error}") from error
    if token_ids and isinstance(raw, dict) and list(raw) == ["ids"]:
        ids = raw["ids"]
        if not isinstance(ids, list) or not ids or any(type(i) is not int for i in ids):
            raise CalibrationError("ids is no list of at least one integer")
        return CalibrationSample((), "", where, ids=tuple(ids))
    turns = raw.get("question") if isinstance(raw, dict) else None
    several = isinstance(turns, list) and all(isinstance(turn, str) for turn in turns)
    if not isinstance(raw, dict) or not all(
        isinstance(value, str) or (name == "question" and several) for name, value in raw.items()
    ):
        raise CalibrationError(
            "expected an object of strings: question, which may be a list of turns, and optionally "
            "image and answer"
        )
    unknown = sorted(set(raw) - _KEYS)
    if unknown or "question" not in raw:
        what = f"has the unknown key {unknown[0]!r:.40}" if unknown else "lacks the key question"
        raise CalibrationError(f"{what}; known keys: {', '.join(sorted(_KEYS))}")
    messages = conversation(raw["question"])
    if "image" not in raw:
        return CalibrationSample(messages, raw.get("answer", ""), where)
    if not pictures:
        raise CalibrationError("names an image, but the checkpoint has no vision encoder")
    file = path.parent / raw["image"]
    try:
        open_picture(file)
    except ValueError as error:  # a NUL in the name
        raise PictureError(f"{raw['image']!r:.80}: {error}") from error
    digest = hashlib.sha256(read_regular(file)).hexdigest()
    picture = partial(open_picture, file)
    return CalibrationSample(messages, raw.get("answer", ""), where, picture, digest)
