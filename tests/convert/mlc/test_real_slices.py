"""MLC-LLM itself compiles a model with slices; its library encodes squares as the model does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from convert import pipeline
from convert.checkpoint.reader import Checkpoint
from convert.conversion.config import MlcOptions
from convert.mlc.opened import MlcPackage
from runtime.inputs.prompt import Tokenizer
from runtime.inputs.slices import images_of
from runtime.mlc.engine import MlcEngine, find_library
from runtime.reference.load import load_reference
from tests.support.compare import Record
from tests.support.original_conversations import picture
from tests.support.slices import write_slices_checkpoint

SIDE = 448
LEAST_DB = 40.0  # int8 vision in float16, as test_real_mlc.py
LOGITS_DB = 20.0  # 4-bit decoder: 26 were measured there


def sqnr_db(found: Tensor, expected: Tensor) -> float:
    return float(10 * (expected.square().mean() / (found - expected).square().mean()).log10())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(write_slices_checkpoint(tmp_path_factory.mktemp("mlc") / "checkpoint"))


@pytest.fixture(scope="module")
def package(source: Path, checkpoint: Checkpoint) -> MlcPackage:
    folder = checkpoint.path.with_name("package")
    pipeline.convert(checkpoint.path, folder, target="mlc-host", mlc=MlcOptions(source=source))
    return MlcPackage.open(folder)


@torch.inference_mode()
def test_a_prompt_of_an_overview_and_slices(
    checkpoint: Checkpoint, package: MlcPackage, record_property: Record
) -> None:
    """Of a picture whose images are squares: the package computes what the model does."""
    vision = checkpoint.config.vision
    assert vision is not None and checkpoint.tokenizer is not None
    images = images_of(picture(2 * SIDE, 2 * SIDE), vision)
    assert images.grid == (2, 2)
    assert {tuple(pixels.shape[2:]) for pixels in images.pixels} == {(SIDE, SIDE)}
    engine, model = MlcEngine(find_library(package), package.params), load_reference(checkpoint)
    levels = [
        ((pixels[0].permute(1, 2, 0) + 1) * 127.5).round().numpy().astype(np.uint8)
        for pixels in images.pixels
    ]
    expected = [model.encode_image(pixels)[0] for pixels in images.pixels]
    found = [engine.image_tokens(each) for each in levels]
    worst = min(sqnr_db(a, b) for a, b in zip(found, expected, strict=True))
    record_property("image tokens, SQNR dB of the worst image", worst)
    assert worst > LEAST_DB
    tokenizer = Tokenizer(checkpoint.tokenizer, checkpoint.config)
    messages = [{"role": "user", "content": "What is in the picture?"}]
    prompt = tokenizer.prompt(messages, 64, grid=images.grid)
    assert len(prompt.ids) > package.chat["prefill_chunk_size"], "more than a chunk"
    ids = torch.tensor(prompt.ids)
    ours, theirs = engine.embed(prompt.ids), model.llm.embed(ids.unsqueeze(0))[0]
    for at, a, b in zip(prompt.image_starts, found, expected, strict=True):
        ours[at : at + 64], theirs[at : at + 64] = a, b
    engine.begin()
    logits = model.llm.logits(model.llm(theirs.unsqueeze(0)))[0, -1]
    decibels = sqnr_db(engine.logits(ours), logits)
    record_property("logits, SQNR dB", decibels)
    assert decibels > LOGITS_DB
