"""Log-probabilities as OpenAI has them, whole and in a stream."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from runtime.inputs.logprobs import StepLogprobs, TokenLogprob
from runtime.inputs.prompt import Tokenizer
from runtime.serve.answer import event
from runtime.serve.logprobs import TokenTexts
from tests.runtime.serve.client import HELLO, ask, is_phone
from tests.support.serve_stand_in import NAME
from tests.support.tiny_tokenizer import tokenizer_model
from tests.support.web import WebServer


def test_whole(client: openai.OpenAI) -> None:
    answer = ask(client, "hello", logprobs=True, top_logprobs=2)
    steps = answer.choices[0].logprobs.content
    assert answer.choices[0].logprobs.refusal is None
    assert len(steps) == len("1: hello") // 2 + 1
    for step in steps[:-1]:
        assert step.logprob == -0.5
        assert [top.logprob for top in step.top_logprobs] == [-0.5, -1.5]
        assert bytes(step.bytes).decode() == step.token == step.top_logprobs[0].token
    assert (steps[-1].token, steps[-1].bytes, steps[-1].top_logprobs) == ("<unk>", None, [])
    assert ask(client, "hello").choices[0].logprobs is None
    alone = ask(client, "hello", logprobs=True).choices[0].logprobs.content
    assert [step.top_logprobs for step in alone] == [[]] * len(steps)


def test_a_stream_brings_them_with_their_text(client: openai.OpenAI) -> None:
    whole = ask(client, "hello", logprobs=True, top_logprobs=1).choices[0].logprobs.content
    chunks = list(ask(client, "hello", logprobs=True, top_logprobs=1, stream=True))
    choices = [chunk.choices[0] for chunk in chunks]
    assert "".join(choice.delta.content or "" for choice in choices) == "1: hello"
    assert [s for c in choices if c.logprobs for s in c.logprobs.content] == whole
    assert [len(c.logprobs.content) for c in choices if c.delta.content] == [1] * 4
    assert choices[-1].finish_reason == "stop"
    assert choices[-2].delta.content == "" and len(choices[-2].logprobs.content) == 1


def test_the_clients_own_helper_understands_the_stream(client: openai.OpenAI) -> None:
    messages: Any = HELLO
    with client.chat.completions.stream(
        model=NAME, messages=messages, logprobs=True, top_logprobs=1
    ) as stream:
        said = "".join(e.delta for e in stream if e.type == "content.delta")
        final = stream.get_final_completion()
    assert said == final.choices[0].message.content == "1: hello"
    assert final.choices[0].logprobs is not None
    assert len(final.choices[0].logprobs.content or []) == 5


def test_the_asynchronous_client(server: WebServer) -> None:
    async def speak() -> tuple[str, str]:
        messages: Any = HELLO
        async with openai.AsyncOpenAI(
            base_url=server.address, api_key=server.key or "none"
        ) as client:
            whole = await client.chat.completions.create(model=NAME, messages=messages)
            stream = await client.chat.completions.create(
                model=NAME, messages=messages, stream=True
            )
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
        return whole.choices[0].message.content or "", "".join(pieces)

    assert asyncio.run(speak()) == ("1: hello", "1: hello")


def test_the_app_spells_pieces_as_serve_does(server: WebServer, client: openai.OpenAI) -> None:
    if not is_phone(server):
        pytest.skip("of the app: `serve` has a tokenizer, see below")
    step = ask(client, "hello", logprobs=True, top_logprobs=3).choices[0].logprobs.content[0]
    assert (step.token, step.bytes) == (" word", list(b" word"))
    found = [(top.token, top.bytes) for top in step.top_logprobs]
    assert found == [(" word", list(b" word")), ("bytes:\\xe4", [0xE4]), ("<12>", None)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(tokenizer_model())
    return Tokenizer(path)


def test_tokens_together_are_the_text(tokenizer: Tokenizer) -> None:
    """Those of one byte each, too, whose character the vocabulary lacks."""
    text = "What colour is 龘 🦊?"
    texts = TokenTexts(tokenizer)
    steps = [texts.step(StepLogprobs(TokenLogprob(i, -1.0), ())) for i in tokenizer.encode(text)]
    assert b"".join(bytes(step["bytes"]) for step in steps).decode().strip() == text
    bytewise = [step for step in steps if step["token"].startswith("bytes:")]
    assert len(bytewise) >= 4
    assert all(step["token"] == f"bytes:\\x{step['bytes'][0]:02x}" for step in bytewise)


def test_tokens_that_are_no_text(tokenizer: Tokenizer) -> None:
    ids = {2: "</s>", 1: "<s>", tokenizer.vocab_size + 7: f"<{tokenizer.vocab_size + 7}>"}
    for number, spelled in ids.items():
        step = TokenTexts(tokenizer).step(StepLogprobs(TokenLogprob(number, -1.0), ()))
        assert (step["token"], step["bytes"]) == (spelled, None)


@pytest.mark.parametrize("text", ["a\u2028b", "\u0085", "\u2029", "\ud83d", "红色", "\r\n\x0b\x0c"])
def test_events_are_of_one_line_for_every_client(text: str) -> None:
    """Some split lines where Unicode does."""
    lines = event({"content": text}).splitlines()
    assert len(lines) == 2 and lines[1] == ""


def test_unicode_reaches_the_client(client: openai.OpenAI) -> None:
    text = "a\u2028b\u0085c\u2029d 红色 🦊"
    chunks = ask(client, text, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == f"1: {text}"
    assert ask(client, text).choices[0].message.content == f"1: {text}"
