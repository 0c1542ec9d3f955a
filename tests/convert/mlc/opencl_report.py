"""Runs an OpenCL library's kernels, and a host library beside it; prints how far they agree.

    python -m tests.convert.mlc.opencl_report PACKAGE OPENCL DTYPE HOST

OPENCL computes in DTYPE, HOST in float32.

In a process of its own, which has OpenCL in its TVM from then on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import tvm
from PIL import Image

from convert.checkpoint.config import CONFIGS
from convert.checkpoint.reader import Checkpoint
from convert.mlc.opened import MlcPackage
from quantize.schemes import Array
from runtime.inputs.prompt import Message, Tokenizer
from runtime.mlc.engine import MlcEngine
from runtime.reference import metrics
from tests.support.opencl_device import OpenClDevice
from tests.support.opencl_in_tvm import OpenClInTvm

DEMO = CONFIGS / "demo"
CHUNKS = (300, 1, 2, 6, 40, 1)  # tokens at a time; the first are more than a chunk of 256
QUESTION, ANSWER = "What colour is the shape?", 24  # tokens at most


def main(package: Path, opencl_library: Path, dtype: str, host_library: Path) -> None:
    """Compares the libraries part by part, then an answer about a picture."""
    opencl = OpenClInTvm(OpenClDevice())
    params = MlcPackage.open(package).params
    device = MlcEngine(opencl_library, converted(params, dtype), tvm.device("opencl"))
    host = MlcEngine(host_library, converted(params, "float32"))
    checkpoint = Checkpoint.open(DEMO)
    assert checkpoint.config.vision is not None and checkpoint.tokenizer is not None
    side = checkpoint.config.vision.image_size
    with Image.open(DEMO / "sample.png") as picture:
        pixels = np.asarray(picture.convert("RGB").resize((side, side)))
    image = device.image_tokens(pixels)
    ids = torch.randint(
        3, checkpoint.config.decoder.vocab_size, (sum(CHUNKS),), generator=torch.manual_seed(0)
    ).tolist()
    embeddings = device.embed(ids)
    db = {
        "image tokens": metrics.sqnr_db(host.image_tokens(pixels), image),
        "embeddings": metrics.sqnr_db(host.embed(ids), embeddings),
    }
    device.begin()
    host.begin()
    for i, part in enumerate(embeddings.split(CHUNKS)):
        found, expected = device.logits(part), host.logits(part)
        db[f"logits {i}"] = metrics.sqnr_db(expected, found)
    tokenizer, end = Tokenizer(checkpoint.tokenizer), checkpoint.config.decoder.eos_token_id
    prompt = tokenizer.prompt([Message(role="user", content=QUESTION)], len(image))
    assert prompt.image_start is not None
    answers = []
    for engine in (device, host):
        embeddings = engine.embed(prompt.ids)
        embeddings[prompt.image_start : prompt.image_start + len(image)] = image
        engine.begin()
        answers.append(tokenizer.decode(answer(engine, embeddings, end)))
    launched = [name for name, count in opencl.launches.items() if count]
    print(json.dumps({"db": db, "answers": answers, "launched": launched}))


def converted(params: Mapping[str, Array], dtype: str) -> dict[str, Array]:
    """Returns a package's parameters as a library takes that computes in another type."""
    return {
        name: values.astype(dtype) if values.dtype == np.float16 else values
        for name, values in params.items()
    }


def answer(engine: MlcEngine, embeddings: torch.Tensor, end: int) -> list[int]:
    """Answers a prompt (L, D) greedily, up to the end token."""
    ids: list[int] = []
    token = int(engine.logits(embeddings).argmax())
    while len(ids) < ANSWER and token != end:
        ids.append(token)
        token = int(engine.logits(engine.embed([token])).argmax())
    return ids


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
