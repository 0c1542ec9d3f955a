"""The reference gives what the original code gave: see tests/golden/original/README.md."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from convert.checkpoint.reader import Checkpoint
from runtime.inputs.generation_options import GenerationOptions
from runtime.inputs.picture import open_picture, preprocess
from runtime.inputs.prompt import (
    ORIGINAL_PROMPT_LIMIT,
    UNKNOWN_ID,
    PromptError,
    Tokenizer,
    check_question,
)
from runtime.reference.load import load_reference
from runtime.sessions.backend import ReferenceBackend
from runtime.sessions.chat import ChatModel

GOLDEN = Path(__file__).resolve().parents[2] / "golden/original"
TOLERANCE = 2e-4  # of a logit; float32 sums in another order. Measured: 6.0e-5, logits up to 18.4
EOS = 2

_golden = json.loads((GOLDEN / "conversations.json").read_text("utf-8"))
CONVERSATIONS: list[dict[str, Any]] = _golden["conversations"]
NUMBERS = range(len(CONVERSATIONS))


@pytest.fixture(scope="module")
def model() -> Iterator[ChatModel]:
    with ChatModel(engine="reference", device="cpu", dtype="float32", as_original=True) as chat:
        yield chat


@pytest.fixture(scope="module")
def backend() -> ReferenceBackend:
    checkpoint = Checkpoint.open(None)
    return ReferenceBackend(
        load_reference(checkpoint, device=torch.device("cpu"), dtype=torch.float32)
    )


@pytest.fixture(scope="module")
def logits() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "logits.npz") as arrays:
        return dict(arrays)


def pixels_of(golden: dict[str, Any], image_size: int) -> Tensor:
    return preprocess(open_picture(GOLDEN / "pictures" / golden["picture"]), image_size)


def test_there_are_40() -> None:
    assert len(CONVERSATIONS) == 40
    assert {c["num_beams"] for c in CONVERSATIONS} == {1, 3}
    assert max(len(c["prompt_ids"]) for c in CONVERSATIONS) == ORIGINAL_PROMPT_LIMIT


@pytest.mark.parametrize("number", NUMBERS)
def test_prompts_and_pixels(model: ChatModel, number: int) -> None:
    golden = CONVERSATIONS[number]
    prompt = model.tokenizer.prompt(golden["messages"], 64, as_original=True)
    assert prompt.cut(ORIGINAL_PROMPT_LIMIT).ids == golden["prompt_ids"]
    vision = model.session.config.vision
    assert vision is not None
    pixels = pixels_of(golden, vision.image_size)
    levels = ((pixels[0] * 0.5 + 0.5) * 255).round().to(torch.uint8).permute(1, 2, 0)
    digest = hashlib.sha256(levels.contiguous().numpy().tobytes()).hexdigest()
    assert digest == golden["pixels_sha256"]
    assert np.abs(pixels.flatten()[::9973][:8].numpy() - golden["pixels"]).max() < 1e-6


@pytest.mark.parametrize("number", NUMBERS)
def test_logits(
    backend: ReferenceBackend,
    model: ChatModel,
    logits: dict[str, np.ndarray],
    number: int,
    record_property: Any,
) -> None:
    """Of every place of the answer, given the original's ids before it."""
    golden = CONVERSATIONS[number]
    found = answer_logits(backend, model.tokenizer, golden)
    start = sum(len(one["answer_ids"]) for one in CONVERSATIONS[:number])
    places = slice(start, start + len(golden["answer_ids"]))
    top = np.take_along_axis(found, logits["top_ids"][places].astype(np.int64), axis=1)
    worst = max(
        np.abs(found[0] - logits["first"][number]).max(),
        np.abs(top - logits["top_logits"][places]).max(),
    )
    record_property("largest difference of a logit", float(worst))
    assert worst < TOLERANCE


def answer_logits(
    backend: ReferenceBackend, tokenizer: Tokenizer, golden: dict[str, Any]
) -> np.ndarray:
    """Returns logits (A, V) of an answer's places; one token after the other, by the KV cache."""
    vision, resampler = backend.config.vision, backend.config.resampler
    assert vision is not None and resampler is not None
    image = backend.encode_image(pixels_of(golden, vision.image_size))
    ids = golden["prompt_ids"]
    first = ids.index(tokenizer.image_start_id) + 1
    assert ids[first : first + resampler.query_num] == [UNKNOWN_ID] * resampler.query_num
    embeds = backend.embed(ids)
    embeds = torch.cat((embeds[:first], image, embeds[first + resampler.query_num :]))
    cache = backend.new_cache(window=4096, pinned=4)
    rows = [backend.logits(backend.forward(embeds, cache)[-1:])]
    for id in golden["answer_ids"][:-1]:
        rows.append(backend.logits(backend.forward(backend.embed([id]), cache)))
    return torch.cat(rows).numpy()


@pytest.mark.parametrize("number", NUMBERS)
def test_answers(model: ChatModel, number: int) -> None:
    golden = CONVERSATIONS[number]
    options = GenerationOptions(
        max_new_tokens=_golden["max_new_tokens"],
        num_beams=golden["num_beams"],
        repetition_penalty=golden["repetition_penalty"],
    )
    picture = open_picture(GOLDEN / "pictures" / golden["picture"])
    reply = model.session.reply(golden["messages"], picture, options)
    assert reply.ids == [id for id in golden["answer_ids"] if id != EOS]
    assert reply.text == golden["answer"]
    assert (reply.statistics.stop == "eos") == (golden["answer_ids"][-1] == EOS)


def test_four_are_taken_as_original_only() -> None:
    def is_refused(number: int) -> bool:
        try:
            check_question(CONVERSATIONS[number]["messages"])
        except PromptError:
            return True
        return False

    assert [number for number in NUMBERS if is_refused(number)] == [35, 36, 37, 38]


@pytest.mark.parametrize("golden", _golden["decoded"])
def test_texts_of_ids(model: ChatModel, golden: dict[str, Any]) -> None:
    """With the space that the original puts before text that a special token follows."""
    tokenizer = model.tokenizer
    ids = [id for id in golden["ids"] if id != UNKNOWN_ID]
    ids = ids[:-1] if ids[-1:] == [EOS] else ids
    special = {1, EOS, *range(103, 107)}
    runs = [(key, list(run)) for key, run in itertools.groupby(ids, special.__contains__)]
    texts = ["".join(tokenizer.pieces(run)) if key else tokenizer.decode(run) for key, run in runs]
    assert tokenizer.decode(golden["ids"]) == "".join(texts)
    spaces = [" " * (not key and i + 1 < len(runs)) for i, (key, _) in enumerate(runs)]
    assert "".join(map(add, spaces, texts)).strip() == golden["text"]
