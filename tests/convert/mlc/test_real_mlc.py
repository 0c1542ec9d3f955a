"""MLC-LLM itself compiles the demo; its library answers about pictures as the reference does."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convert import pipeline
from convert.checkpoint.config import CONFIGS
from convert.checkpoint.reader import Checkpoint
from convert.conversion.config import MlcOptions
from convert.mlc.names import CHAT_CONFIG
from convert.mlc.package import read_manifest
from convert.support.strict_json import load_json
from runtime.doctor.mlc_checks import SOURCE_VARIABLE
from runtime.inputs.picture import preprocess
from runtime.inputs.prompt import Message, Tokenizer
from runtime.inputs.sampling import GenerationOptions
from runtime.reference import metrics
from runtime.reference.load import load_reference
from runtime.reference.model import MiniCPMV
from runtime.sessions.backend import ReferenceBackend
from runtime.sessions.reference_session import ReferenceSession
from tests.support.compare import Record
from tests.support.elf import Elf
from tests.support.mlc_engine import MlcEngine

SOURCE = os.environ.get(SOURCE_VARIABLE)
QUESTIONS = ("What colour is the shape?", "这个图形是什么颜色？", "Describe the picture.")
LEAST_DB = 40.0  # int8 vision in float16: 48.6 were measured
ARM64 = "aarch64"
pytestmark = [
    pytest.mark.skipif(SOURCE is None, reason=f"{SOURCE_VARIABLE} names no checkout of mlc-llm"),
]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mlc") / "package"
    pipeline.convert(
        None,
        folder,
        target=("mlc-android", "mlc-host"),
        mlc=MlcOptions(source=Path(str(SOURCE))),
    )
    return folder


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint.open(CONFIGS / "demo")


@pytest.fixture(scope="module")
def reference(checkpoint: Checkpoint) -> MiniCPMV:
    return load_reference(checkpoint)


@pytest.fixture(scope="module")
def engine(package: Path) -> MlcEngine:
    return MlcEngine(package / "minicpm_v-q4f16_1-host.so", package)


def test_what_is_in_the_package(package: Path, tmp_path: Path) -> None:
    manifest = read_manifest(package)
    assert manifest["pictures"] is True
    assert {name: record["abi"] for name, record in manifest["libraries"].items()} == {
        "mlc-android": "0.27", "mlc-host": "0.27"
    }  # fmt: skip
    config = load_json(package / CHAT_CONFIG)
    vision = config["model_config"]["vision_config"]
    assert config["model_type"] == "minicpm_v"
    assert (vision["image_size"] // vision["patch_size"]) ** 2 == vision["num_queries"] == 64
    with tarfile.open(package / manifest["libraries"]["mlc-android"]["file"]) as archive:
        archive.extractall(tmp_path, filter="data")
    objects = list(tmp_path.iterdir())
    assert objects and {Elf.read(path).machine for path in objects} == {ARM64}


def test_image_tokens(engine: MlcEngine, reference: MiniCPMV, record_property: Record) -> None:
    with Image.open(CONFIGS / "demo/sample.png") as picture:
        pixels = preprocess(picture.convert("RGB"), 168)
    value = metrics.sqnr_db(encode(reference, pixels), engine.image_tokens(levels(pixels)))
    record_property("image tokens, dB", value)
    assert value > LEAST_DB


@pytest.mark.parametrize("question", QUESTIONS)
def test_answers(
    question: str, engine: MlcEngine, reference: MiniCPMV, checkpoint: Checkpoint
) -> None:
    assert checkpoint.tokenizer is not None
    tokenizer, messages = Tokenizer(checkpoint.tokenizer), [Message(role="user", content=question)]
    with Image.open(CONFIGS / "demo/sample.png") as picture:
        session = ReferenceSession(ReferenceBackend(reference), tokenizer, window=512)
        shown = picture.convert("RGB")
        reply = session.reply(messages, shown, GenerationOptions(max_new_tokens=24))
        image = engine.image_tokens(levels(preprocess(shown, 168)))
    prompt = tokenizer.prompt(messages, len(image))
    embeddings = engine.embed(prompt.ids)
    assert prompt.image_start is not None
    embeddings[prompt.image_start : prompt.image_start + len(image)] = image
    engine.begin()
    assert engine.answer(embeddings, checkpoint.config.decoder.eos_token_id, 24) == reply.ids


def encode(reference: MiniCPMV, pixels: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return reference.encode_image(pixels)[0]


def levels(pixels: torch.Tensor) -> np.ndarray:
    """Returns the picture (S, S, 3) uint8 that normalised pixels (1, 3, S, S) come from."""
    values = (pixels[0].permute(1, 2, 0) * 0.5 + 0.5) * 255
    return values.round().clamp(0, 255).byte().numpy()
