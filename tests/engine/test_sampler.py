"""The engine's sampler keeps the same tokens as `runtime.inputs.sampling` and is reproducible."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from runtime.inputs.generation_options import GenerationOptions
from runtime.inputs.sampling import distribution, penalize
from tests.engine.components import ComponentError, Components, numbers
from tests.support.compare import Record

# Torch adds float32 exponentials, the engine float64 ones; measured 1.2e-7.
FLOAT32_SOFTMAX = 2e-6


def _spell(**options: Any) -> str:
    defaults = {"do_sample": True, "temperature": 1.0, "top_k": None, "top_p": 1.0}
    defaults |= {"repetition_penalty": 1.0, "seed": None}
    values = (defaults | options).values()
    return " ".join("-" if v is None else str(int(v) if v is True else v) for v in values)


def _logits(rng: np.random.Generator, size: int) -> np.ndarray:
    logits = rng.normal(0, rng.choice([0.1, 1, 5, 30]), size).astype(np.float32)
    if rng.random() < 0.5:  # many tie
        logits = np.round(logits)
    if rng.random() < 0.1:
        logits[:] = logits[0]
    return logits


def _options(rng: np.random.Generator, size: int) -> dict[str, Any]:
    return {
        "temperature": float(rng.choice([0.1, 0.7, 1.0, 1.3, 10])),
        "top_k": rng.choice([None, 1, 2, 5, 40, size, size + 1]),
        "top_p": float(rng.choice([1.0, 0.999, 0.9, 0.8, 0.5, 0.25, 0.1, 1e-3, 1e-9, 0.0])),
        "repetition_penalty": float(rng.choice([1.0, 1.05, 1.3, 3.0, 0.8])),
    }


@pytest.mark.parametrize(
    ("size", "trials"), [(2, 20), (4, 500), (10, 500), (501, 500), (122753, 12)]
)
def test_the_same_tokens_survive(
    components: Components, size: int, trials: int, record_property: Record
) -> None:
    rng = np.random.default_rng(size)
    worst = 0.0
    for _ in range(trials):
        logits, options = _logits(rng, size), _options(rng, size)
        generated = rng.integers(0, size, rng.integers(0, 12)).tolist()
        reply = components.call(
            "distribution", _spell(**options), logits.tobytes(), numbers(generated)
        )
        ids, actual = np.frombuffer(reply, "<i4").reshape(2, -1)[0], reply[len(reply) // 2 :]
        original = GenerationOptions(max_new_tokens=1, do_sample=True, **options)
        scores = penalize(torch.from_numpy(logits), generated, original.repetition_penalty)
        kept, expected = distribution(scores, original)
        order = kept.argsort()
        assert ids.tolist() == kept[order].tolist(), (options, logits, generated)
        difference = np.abs(np.frombuffer(actual, "<f4") - expected[order].numpy()).max()
        worst = max(worst, float(difference))
    record_property(f"{size} tokens, largest difference of a probability", worst)
    assert worst < FLOAT32_SOFTMAX


def test_greedy_takes_the_first_of_the_likeliest(components: Components) -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        size = int(rng.integers(2, 40))
        logits = np.round(rng.normal(0, 2, size)).astype(np.float32)
        generated = rng.integers(0, size, rng.integers(0, 5)).tolist()
        spelled = _spell(do_sample=0, repetition_penalty=1.2, top_k=3, temperature=9)
        chosen = components.ints("choose", spelled, logits.tobytes(), numbers(generated), 1)
        expected = penalize(torch.from_numpy(logits), generated, 1.2).argmax()
        assert chosen == [int(expected)]


class Xoshiro:
    """xoshiro256** seeded with splitmix64, implemented independently."""

    MASK = 2**64 - 1

    def __init__(self, seed: int) -> None:
        self.state = []
        for i in range(1, 5):
            z = (seed + i * 0x9E3779B97F4A7C15) & self.MASK
            z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & self.MASK
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & self.MASK
            self.state.append(z ^ (z >> 31))

    def next(self) -> int:
        a, b, c, d = self.state
        result = (self._rotate(b * 5 & self.MASK, 7) * 9) & self.MASK
        c, d = c ^ a, d ^ b
        self.state = [a ^ d, b ^ c, (c ^ (b << 17)) & self.MASK, self._rotate(d, 45)]
        return result

    def _rotate(self, x: int, by: int) -> int:
        return (x << by | x >> (64 - by)) & self.MASK


@pytest.mark.parametrize("seed", [0, 1, 42, 2**63 - 1, 2**64 - 1])
def test_random_numbers_are_the_documented_ones(components: Components, seed: int) -> None:
    generator = Xoshiro(seed)
    assert components.ints("random", seed, 1000) == [generator.next() for _ in range(1000)]


def test_splitmix_gives_its_published_numbers() -> None:
    """The first numbers for seed 1234567 (Rosetta Code, Pseudo-random numbers/Splitmix64)."""
    assert Xoshiro(1234567).state[:2] == [6457827717110365317, 3203168211198807973]


def test_a_seed_gives_the_documented_tokens(components: Components) -> None:
    logits = np.log(np.array([0.1, 0.2, 0.3, 0.4], np.float32))
    for seed in range(5):
        chosen = components.ints("choose", _spell(seed=seed), logits.tobytes(), "", 200)
        generator, expected = Xoshiro(seed), []
        for _ in range(200):
            uniform = (generator.next() >> 11) * 2.0**-53
            expected.append(int(np.searchsorted([0.1, 0.3, 0.6], uniform, side="right")))
        assert chosen == expected


def test_tokens_come_as_often_as_their_probability_says(components: Components) -> None:
    logits, count = np.array([1, 0, -1, 2, 0.5, -3], np.float32), 60_000
    options = {"temperature": 0.9, "top_k": 4, "top_p": 0.95}
    chosen = components.ints("choose", _spell(**options, seed=7), logits.tobytes(), "", count)
    original = GenerationOptions(max_new_tokens=1, do_sample=True, **options)
    kept, probabilities = distribution(torch.from_numpy(logits), original)
    assert set(chosen) == set(kept.tolist())
    for id, probability in zip(kept.tolist(), probabilities.tolist(), strict=True):
        deviation = (count * probability * (1 - probability)) ** 0.5
        assert abs(chosen.count(id) - count * probability) < 4 * deviation


def test_without_a_seed_every_answer_differs(components: Components) -> None:
    logits = np.zeros(1000, np.float32)
    first, second = (components.ints("choose", _spell(), logits.tobytes(), "", 20) for _ in "12")
    assert first != second


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, r"temperature is 0; expected a number above 0"),
        ({"temperature": -1.5}, r"temperature is -1\.5; "),
        ({"temperature": "nan"}, r"temperature is nan; "),
        ({"temperature": "inf"}, r"temperature is inf; "),
        ({"top_k": 0}, r"top_k is 0; expected an integer of at least 1"),
        ({"top_k": -3}, r"top_k is -3; "),
        ({"top_p": -0.1}, r"top_p is -0\.1; expected a number from 0 to 1"),
        ({"top_p": 1.01}, r"top_p is 1\.01; "),
        ({"top_p": "nan"}, r"top_p is nan; "),
        ({"repetition_penalty": 0}, r"repetition_penalty is 0; expected above 0"),
        ({"repetition_penalty": "-inf"}, r"repetition_penalty is -inf; "),
    ],
)
def test_options_out_of_range_are_refused(
    components: Components, options: dict[str, Any], message: str
) -> None:
    logits = np.zeros(4, np.float32).tobytes()
    with pytest.raises(ComponentError, match=f"^invalid_request: {message}"):
        components.call("choose", _spell(**options), logits, "", 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("do_sample", [0, 1])
def test_logits_that_are_no_numbers_are_refused(
    components: Components, value: float, do_sample: int
) -> None:
    logits = np.zeros(9, np.float32)
    logits[5] = value
    with pytest.raises(ComponentError, match=r"^invalid_logits: .*not finite"):
        components.call("choose", _spell(do_sample=do_sample), logits.tobytes(), "", 1)


@pytest.mark.parametrize("temperature", [1e-300, 1e-44, 1e-30, 1e30, 1e300])
@pytest.mark.parametrize("penalty", [1e-300, 1e-30, 1e30, 1e300])
def test_extreme_options_still_give_a_token(
    components: Components, temperature: float, penalty: float
) -> None:
    rng = random.Random(0)
    options = _spell(temperature=temperature, repetition_penalty=penalty, top_p=0.9, top_k=3)
    for _ in range(20):
        logits = np.array([rng.choice([-1e38, -5, 0, 5, 1e38]) for _ in range(8)], np.float32)
        chosen = components.ints("choose", options, logits.tobytes(), "0 1 2 3 1", 5)
        assert all(0 <= id < 8 for id in chosen)
