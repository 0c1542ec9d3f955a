"""The engine's log-probabilities equal PyTorch's log-softmax and belong to the answer's tokens."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from convert.bundle.manifest import Bundle
from quantize.errors import ConfigError
from runtime.engine_client.client import EngineClient, EngineError, engine_command
from runtime.engine_client.options import LOCAL
from runtime.engine_client.protocol import ErrorCode
from runtime.inputs.generation_options import GenerationOptions
from runtime.inputs.logprobs import LIMIT, StepLogprobs, step_logprobs
from runtime.inputs.prompt import Message, Tokenizer
from runtime.sessions.reference_session import ReferenceSession
from tests.engine.components import Components
from tests.engine.engines import Built
from tests.support.compare import Record
from tests.support.compiled import CompiledBackend, CompiledModel, compile_here

# Both add exponentials in float64; the result is rounded to float32: half a unit in the last place.
FLOAT32_LOGPROB = 1e-6
BLOCKS = 1e-3  # the engine's logits against those of the same blocks run through Python
QUESTION: list[Message] = [{"role": "user", "content": "What colour is the shape?"}]
TOKENS = 12


@pytest.mark.parametrize("size", [1, 5, 501, 122753])
@pytest.mark.parametrize("count", [0, 1, 5, LIMIT])
def test_they_are_the_log_softmax(
    components: Components, size: int, count: int, record_property: Record
) -> None:
    rng = np.random.default_rng(size + count)
    logits = rng.normal(0, 8, size).astype(np.float32)
    if count == 5:
        logits = np.round(logits)  # many ties: the lowest id comes first
    chosen = int(rng.integers(size))
    reply = components.call("logprobs", logits.tobytes(), chosen, count)
    half = len(reply) // 2
    ids, logprobs = np.frombuffer(reply[:half], "<i4"), np.frombuffer(reply[half:], "<f4")
    expected = torch.from_numpy(logits).double().log_softmax(0).numpy()
    likeliest = sorted(range(size), key=lambda i: (-float(logits[i]), i))[:count]
    assert ids.tolist() == [chosen, *likeliest]
    worst = float(np.abs(logprobs - expected[ids]).max() / max(1, np.abs(expected[ids]).max()))
    record_property(f"{size} tokens, largest relative difference", worst)
    assert worst < FLOAT32_LOGPROB
    ours = step_logprobs(torch.from_numpy(logits), chosen, count)
    assert [ours.chosen.id, *(token.id for token in ours.top)] == ids.tolist()
    assert math.isclose(ours.chosen.logprob, float(expected[chosen]), abs_tol=1e-12)


def test_extreme_logits_give_numbers(components: Components) -> None:
    logits = np.array([3e38, -3e38, 0, 3e38], np.float32)
    reply = components.call("logprobs", logits.tobytes(), 0, 2)
    assert np.frombuffer(reply[12:], "<f4") == pytest.approx([-math.log(2)] * 3)
    reply = components.call("logprobs", logits.tobytes(), 1, 0)
    assert np.frombuffer(reply[4:], "<f4") == np.finfo(np.float32).min


@pytest.fixture(scope="module")
def client(built: Built) -> Iterator[EngineClient]:
    with EngineClient(engine_command(LOCAL, built.program), quiet_seconds=60) as running:
        running.load(built.bundle, window=160)
        yield running


@pytest.fixture(scope="module")
def reference(built: Built) -> ReferenceSession:
    bundle = Bundle.open(built.bundle)
    model = CompiledModel(bundle.config, compile_here(bundle.config, bundle.plan), bundle.weights())
    tokenizer = Tokenizer(built.bundle / "tokenizer.model")
    return ReferenceSession(CompiledBackend(model), tokenizer, window=160)


SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 2.0, "seed": 3}


@pytest.mark.parametrize("options", [{}, SAMPLED, {"repetition_penalty": 1.5}], ids=str)
def test_an_answer_with_them(
    client: EngineClient, reference: ReferenceSession, options: dict[str, Any]
) -> None:
    """They describe the model's own distribution, whatever the sampling options."""
    steps: list[StepLogprobs] = []
    heard: list[tuple[str, int]] = []
    answer = client.chat(
        QUESTION,
        max_new_tokens=TOKENS,
        options={"top_logprobs": 4, **options},
        on_text=lambda text: heard.append((text, len(steps))),
        on_logprobs=steps.append,
    )
    assert [step.chosen.id for step in steps] == answer.ids and len(answer.ids) == TOKENS
    assert heard[0][1] >= 1, "a token comes before its text"
    for step in steps:
        assert [t.logprob for t in step.top] == sorted((t.logprob for t in step.top), reverse=True)
        assert len(step.top) == 4 and step.chosen.logprob <= step.top[0].logprob
    if not options:
        assert all(step.chosen == step.top[0] for step in steps), "greedy"
    expected: list[StepLogprobs] = []
    greedy = GenerationOptions(max_new_tokens=TOKENS, top_logprobs=4)
    theirs = reference.reply(QUESTION, None, greedy, on_logprobs=expected.append)
    assert [step.chosen.id for step in expected] == theirs.ids
    assert [t.id for t in steps[0].top] == [t.id for t in expected[0].top]
    for ours, other in zip(steps[0].top, expected[0].top, strict=True):
        assert math.isclose(ours.logprob, other.logprob, abs_tol=BLOCKS)


def test_they_come_only_when_asked_for(client: EngineClient) -> None:
    steps: list[StepLogprobs] = []
    client.chat(QUESTION, max_new_tokens=3, on_logprobs=steps.append)
    assert steps == []
    options = {"top_logprobs": 0}
    client.chat(QUESTION, max_new_tokens=3, options=options, on_logprobs=steps.append)
    assert [step.top for step in steps] == [()] * 3


def test_how_many_there_are(client: EngineClient) -> None:
    for wrong in (-1, LIMIT + 1, 1.5, True):
        with pytest.raises(EngineError, match="top_logprobs") as error:
            client.chat(QUESTION, max_new_tokens=3, options={"top_logprobs": wrong})
        assert error.value.code == ErrorCode.INVALID_REQUEST
        with pytest.raises(ConfigError, match="top_logprobs"):
            GenerationOptions(max_new_tokens=3, top_logprobs=wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="beam search"):
        GenerationOptions(max_new_tokens=3, top_logprobs=1, num_beams=2)


def test_pieces_are_the_tokenizers(built: Built) -> None:
    """Also those of one byte, and of tokens beyond the vocabulary, which have none."""
    tokenizer = Tokenizer(built.bundle / "tokenizer.model")
    load = {"op": "load", "id": 1, "bundle": str(built.bundle), "window": 160}
    chat = {"op": "chat", "id": 2, "messages": QUESTION, "top_logprobs": LIMIT}
    chat |= {"max_new_tokens": TOKENS, "do_sample": True, "temperature": 5.0, "seed": 1}
    found: dict[int, str | None] = {}
    command = [str(built.program.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as engine:
        assert engine.stdin is not None and engine.stdout is not None
        for request in (load, chat):
            engine.stdin.write(json.dumps(request).encode() + b"\n")
        engine.stdin.flush()
        for line in map(json.loads, engine.stdout):
            assert line["event"] != "error", line
            for token in (line, *line["top"]) if line["event"] == "token" else ():
                found[token["token"]] = token.get("piece")
            if (line["event"], line.get("id")) == ("done", 2):
                engine.stdin.close()
    assert len(found) > 3 * TOKENS
    for number, piece in found.items():
        within = number < tokenizer.vocab_size
        assert piece == (tokenizer.pieces([number])[0] if within else None)
    assert any(piece is not None and piece.startswith("<0x") for piece in found.values())
