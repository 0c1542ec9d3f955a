"""What the profile makes of an engine's figures."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from runtime.bench.inputs import random_picture
from runtime.bench.profile import BETWEEN, ProfiledPhase, profile
from runtime.engine_client.protocol import Field
from runtime.inputs.prompt import Tokenizer
from tests.support.tiny_tokenizer import tokenizer_model


class FakeClient:
    """Answers with figures that are easy to reckon with."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.pictures: list[bytes] = []

    def profile(self) -> list[dict[str, Any]]:
        last, self.done = (self.done or ["nothing"])[-1], []
        calls = {"image": 2, "read": 3, "written": 12, "nothing": 0}[last]
        rows = {"image": 2048, "read": 300, "written": 12, "nothing": 0}[last]
        times = {"x_linear_q8_32x1000": 4.0, "x_gate": 1.0, "vm.builtin.alloc": 2.0}
        return [
            {Field.NAME: name, Field.CALLS: calls, Field.ROWS: rows, Field.MS: ms}
            for name, ms in times.items()
        ]

    def image(self, picture: Any) -> dict[str, Any]:
        self.done.append("image")
        self.pictures.append(picture.tobytes())
        return {Field.ENCODE_MS: 10.0}

    def reset(self) -> None:
        pass

    def chat(self, messages: Any, *, max_new_tokens: int, options: Any = None) -> Any:
        assert max_new_tokens == 1 or max_new_tokens == 2 or options == {Field.LOOKUP: False}
        self.done.append("read" if max_new_tokens == 1 else "written")
        statistics = {
            Field.PROMPT_TOKENS: 100,
            Field.PREFILL_MS: 8.0,
            Field.DECODE_MS: 16.0,
            Field.DECODE_STEPS: 3,
        }
        return SimpleNamespace(statistics=statistics)


@pytest.fixture(scope="module")
def client() -> FakeClient:
    return FakeClient()


@pytest.fixture(scope="module")
def phases(
    client: FakeClient, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ProfiledPhase, ...]:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(tokenizer_model())
    return profile(client, Tokenizer(path), (640, 640))  # type: ignore[arg-type]


def test_pictures_are_new_to_the_engine(
    client: FakeClient, phases: tuple[ProfiledPhase, ...]
) -> None:
    """One that the rounds have shown is remembered, and would not be encoded."""
    shown = {random_picture(seed).tobytes() for seed in range(100)}
    assert len(set(client.pictures) - shown) == 2


def test_phases(phases: tuple[ProfiledPhase, ...]) -> None:
    assert [phase.name for phase in phases] == ["picture", "prompt of 100 tokens", "token"]
    assert [phase.ms for phase in phases] == [10, 8, 6]  # 16 and 8 ms are four steps


def test_kernels_are_divided_by_units(phases: tuple[ProfiledPhase, ...]) -> None:
    linear, gate, between = phases[2].kernels
    assert (linear.name, linear.calls, linear.ms) == ("x_linear_q8_32x1000", 3, 1)
    assert linear.share == pytest.approx(4 / 24)
    assert (gate.ms, gate.multiply_adds_s, gate.weight_bytes_s) == (0.25, None, None)
    assert (between.name, between.ms) == (BETWEEN, 4.75), "the machine's own work is not a kernel"
    assert sum(kernel.share for kernel in phases[2].kernels) == pytest.approx(1)


def test_rates_of_products(phases: tuple[ProfiledPhase, ...]) -> None:
    linear = phases[0].kernels[0]
    assert linear.multiply_adds_s == pytest.approx(2048 * 32_000 / 4e-3)
    assert linear.weight_bytes_s == pytest.approx(2 * 32_000 * 8.125 / 8 / 4e-3)


def test_without_a_tokenizer_or_pictures() -> None:
    assert profile(FakeClient(), None, None) == ()  # type: ignore[arg-type]
