"""What the comparisons are given: an ONNX model in any form, prompts, answers that end early."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from convert.checkpoint.synth_tokenizer import generate_tokenizer
from quantize.errors import ToolkitError
from runtime.bench.runners import Asked
from runtime.inputs.prompt import Tokenizer
from tests.bench.against_llama import AFTER, STEPS, Ours
from tests.bench.against_onnx import onnx_model


def test_a_model_is_a_file_or_a_folder_with_it(tmp_path: Path) -> None:
    file = tmp_path / "vision.onnx"
    file.touch()
    assert onnx_model(file) == onnx_model(tmp_path) == file.resolve()
    with pytest.raises(ToolkitError, match=r"expected vision\.onnx"):
        onnx_model(tmp_path / "missing")


class Stand:
    """A runner whose answers end after a few tokens."""

    def __init__(self, most: int) -> None:
        self._most, self._known = most, 0

    def forget(self) -> None:
        self._known = 0

    def ask(self, text: str, picture: None, max_new_tokens: int) -> Asked:
        reused, self._known = self._known, AFTER - 1
        steps = min(self._most, max_new_tokens - 1)
        return Asked(
            total_ms=0, encode_ms=0, prefill_ms=5.0 * (AFTER - reused), decode_ms=10.0 * steps,
            prompt_tokens=AFTER, reused_tokens=reused, decode_steps=steps,
        )  # fmt: skip


def ours(tmp_path: Path, most: int, watch: Any = None) -> Ours:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(generate_tokenizer(1000))
    return Ours(cast(Any, Stand(most)), Tokenizer(path), watch)


@pytest.mark.parametrize("most", [3, STEPS])
def test_decoding_goes_on_when_an_answer_ends(tmp_path: Path, most: int) -> None:
    assert ours(tmp_path, most).decode_tok_s() == pytest.approx(100)


def test_an_answer_that_ends_at_once_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match="nothing can be decoded"):
        ours(tmp_path, 0).decode_tok_s()


def test_processor_time_of_the_prompt_is_taken_off(tmp_path: Path) -> None:
    # One of an answer's tokens belongs to the prompt: the last one is always computed.
    def seconds(work: Any) -> float:
        work()
        return 0.02 * (STEPS + 1)

    decoded = ours(tmp_path, STEPS, SimpleNamespace(seconds=seconds)).decode_tok_s()
    assert decoded == pytest.approx(50)
