"""A model with slices gives what MiniCPM-V 2.0's code gave: tests/golden/original-2.0/README.md."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from convert.checkpoint.reader import Checkpoint
from runtime.inputs.generation_options import GenerationOptions
from runtime.inputs.slices import Images, images_of
from runtime.reference.load import load_reference
from runtime.reference.model import MiniCPMV
from runtime.sessions.backend import ReferenceBackend
from runtime.sessions.chat import ChatModel
from runtime.sessions.session import require_vision
from tests.support.original_conversations import (
    CONVERSATIONS,
    MAX_NEW_TOKENS,
    SETTINGS,
    SIZES,
    picture,
)
from tests.support.slices import write_slices_checkpoint

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = ROOT / "tests/golden/original-2.0"
# Of the largest value of a tensor; float32 sums in another order.
TOLERANCE = 1e-4
NUMBERS = range(len(CONVERSATIONS))
# Those that are encoded each time; `test_everything` encodes all of them.
ENCODED = [n for n in NUMBERS if n % 5 == 4 or CONVERSATIONS[n][0] is None]
EOS = 2


@dataclass(frozen=True)
class Record:
    """What the original gave."""

    rows: list[dict[str, Any]]
    arrays: Mapping[str, np.ndarray]  # all values of a tensor, or every n-th

    @staticmethod
    def read(folder: Path) -> Record:
        rows = json.loads((folder / "conversations.json").read_text("utf-8"))
        with np.load(folder / "arrays.npz") as arrays:
            return Record(rows, dict(arrays))

    def difference(self, key: str, found: Tensor) -> float:
        """Returns the largest difference of a tensor, of its scale."""
        expected, values = self.arrays[key], found.numpy().ravel()
        kept = values[:: -(-values.size // expected.size)]
        return float(np.abs(kept - expected.ravel()).max() / np.abs(values).max())


@dataclass(frozen=True)
class Model:
    """The same weights as the original's, twice: for conversations, and for the stages."""

    chat: ChatModel
    stages: MiniCPMV

    def images(self, number: int) -> Images:
        size, _, _ = CONVERSATIONS[number]
        assert size is not None
        return images_of(picture(*size), require_vision(self.chat.session.config))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    folder = write_slices_checkpoint(tmp_path_factory.mktemp("slices"))
    stages = load_reference(Checkpoint.open(folder))
    with ChatModel(
        folder, engine="reference", device="cpu", dtype="float32", as_original=True
    ) as chat:
        yield Model(chat, stages)


@pytest.fixture(scope="module")
def golden() -> Record:
    return Record.read(GOLDEN)


def test_the_sizes_reach_every_border(golden: Record) -> None:
    assert len(SIZES) >= 40
    counts = {len(row["images"]) for row in golden.rows}
    assert counts == {0, 1, 3, 4, 5, 6, 7, 9, 10}
    assert [len(golden.rows[SIZES.index(s)]["images"]) for s in ((448, 448), (449, 448))] == [1, 3]


@pytest.mark.parametrize("number", NUMBERS)
def test_pixels_and_prompts(model: Model, golden: Record, number: int) -> None:
    check_inputs(model, golden, number)


@pytest.mark.parametrize("number", ENCODED)
def test_stages(model: Model, golden: Record, number: int, record_property: Any) -> None:
    check_stages(model, golden, number, record_property)


@pytest.mark.parametrize("number", ENCODED)
def test_answers(model: Model, golden: Record, number: int) -> None:
    check_answer(model, golden, number)


@pytest.mark.slow
def test_everything(model: Model, tmp_path: Path, record_property: Any) -> None:
    """Runs the original anew, and compares every value of every tensor."""
    code, python = (os.environ.get(f"MINICPMV_ORIGINAL_2{name}") for name in ("", "_PYTHON"))
    if not code or not python:
        pytest.skip(
            "needs the original's code and a Python that runs it: MINICPMV_ORIGINAL_2 and "
            "MINICPMV_ORIGINAL_2_PYTHON, see tests/golden/original-2.0/README.md"
        )
    checkpoint, output = write_slices_checkpoint(tmp_path / "checkpoint"), tmp_path / "output"
    module = "tests.support.record_original"
    command = [python, "-W", "ignore", "-m", module, code, str(checkpoint), str(output)]
    subprocess.run(command, cwd=ROOT, check=True)
    fresh = Record.read(output)
    assert fresh.rows == Record.read(GOLDEN).rows
    for number in NUMBERS:
        check_inputs(model, fresh, number)
        check_stages(model, fresh, number, record_property)
        check_answer(model, fresh, number)


def check_inputs(model: Model, record: Record, number: int) -> None:
    row, (size, _, messages) = record.rows[number], CONVERSATIONS[number]
    images = None if size is None else model.images(number)
    prompt = model.chat.tokenizer.prompt(
        messages, 0 if images is None else 64, grid=None if images is None else images.grid
    )
    assert [[id, len(list(run))] for id, run in itertools.groupby(prompt.ids)] == row["prompt"]
    levels = [
        ((pixels[0] * 0.5 + 0.5) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
        for pixels in ([] if images is None else images.pixels)
    ]
    assert [[image.shape[1], image.shape[0]] for image in levels] == row["images"]
    digests = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in levels]
    assert digests == row["pixels_sha256"]


@torch.inference_mode()
def check_stages(model: Model, record: Record, number: int, record_property: Any) -> None:
    """Compares features, image tokens, and the logits of every place of the answer."""
    row, (size, _, messages) = record.rows[number], CONVERSATIONS[number]
    vpm, resampler, backend = (
        model.stages.vpm,
        model.stages.resampler,
        ReferenceBackend(model.stages),
    )
    assert vpm is not None and resampler is not None
    images = None if size is None else model.images(number)
    worst, tokens = {"features": 0.0, "tokens": 0.0, "logits": 0.0}, []
    for i, pixels in enumerate(() if images is None else images.pixels):
        features = vpm(pixels)
        rows, columns = (side // vpm.patch_size for side in pixels.shape[-2:])
        tokens.append(resampler(features, (rows, columns))[0])
        for name, tensor in (("features", features[0]), ("tokens", tokens[-1])):
            worst[name] = max(worst[name], record.difference(f"{name} {number} {i}", tensor))
    prompt = model.chat.tokenizer.prompt(
        messages, 64 if tokens else 0, grid=None if images is None else images.grid
    )
    embeds = backend.embed([*prompt.ids, *row["answer_ids"][:-1]])
    for at, image in zip(prompt.image_starts, tokens, strict=True):
        embeds[at : at + len(image)] = image
    hidden = backend.forward(embeds, backend.new_cache(window=4096, pinned=4))
    logits = backend.logits(hidden[len(prompt.ids) - 1 :])
    worst["logits"] = record.difference(f"logits {number}", logits)
    for name, value in worst.items():
        record_property(f"{name} {number}: largest difference, of the scale", value)
    assert max(worst.values()) < TOLERANCE, worst


def check_answer(model: Model, record: Record, number: int) -> None:
    row, (size, settings, messages) = record.rows[number], CONVERSATIONS[number]
    options = GenerationOptions(max_new_tokens=MAX_NEW_TOKENS, **SETTINGS[settings])
    shown = None if size is None else picture(*size)
    reply = model.chat.session.reply(messages, shown, options)
    assert reply.ids == [id for id in row["answer_ids"] if id != EOS]
    assert reply.text == row["answer"]
