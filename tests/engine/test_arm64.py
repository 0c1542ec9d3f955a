"""The components compiled for phones give bit-identical results to those for the PC."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runtime.inputs.picture_file import write_picture_file
from tests.engine.components import Components, Field, numbers
from tests.engine.test_picture import random_picture
from tests.engine.test_text import PIECES
from tests.support.tiny_tokenizer import tokenizer_model


def _both(components: Components, arm64: Components, name: str, *fields: Field) -> bytes:
    reply = arm64.call(name, *fields)
    assert reply == components.call(name, *fields), (name, fields)
    return reply


@pytest.mark.parametrize("size", [(1, 1), (333, 1000), (1000, 333), (97, 101), (448, 30)])
def test_pictures(
    components: Components, arm64: Components, tmp_path: Path, size: tuple[int, int]
) -> None:
    """Weights are rounded to fixed point, so a fused multiply-add could change one."""
    write_picture_file(tmp_path / "picture", random_picture(*size))
    _both(components, arm64, "picture", tmp_path / "picture", 224)


def test_texts(components: Components, arm64: Components) -> None:
    _both(components, arm64, "load", tokenizer_model())
    for text in PIECES:
        ids = _both(components, arm64, "encode", f"{text} a{text}。")
        _both(components, arm64, "stream", ids, "a", "。")
        _both(components, arm64, "prompt", 9, 0, "user", f"{text}?")


def test_seeds(components: Components, arm64: Components) -> None:
    rng = np.random.default_rng(0)
    for seed in range(20):
        logits = rng.normal(0, 3, 5000).astype(np.float32)
        for options in ("1 0.7 - 0.9 1.05", "1 1.3 40 0.99 1", "1 1 - 1 1", "0 1 - 1 1.2"):
            generated = numbers(rng.integers(0, 5000, 9))
            fields = (logits.tobytes(), generated)
            _both(components, arm64, "distribution", f"{options} {seed}", *fields)
            _both(components, arm64, "choose", f"{options} {seed}", *fields, 5)
