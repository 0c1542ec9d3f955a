"""`serve` and the app's API as OpenAI's client sees them: answers, failures, disconnects, queue."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.runtime.serve.client import (
    CHAT,
    HELLO,
    ask,
    client_of,
    connect,
    head,
    post,
    until_requests,
)
from tests.runtime.serve.conftest import Start
from tests.support.serve_stand_in import NAME
from tests.support.web import WebServer

DEATH = "has ended|the engine was killed"


def test_an_answer(client: openai.OpenAI) -> None:
    answer = ask(client, "hello")
    assert answer.choices[0].message.content == "1: hello"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == NAME
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (1, 3, 4)


def test_a_stream_is_the_same_answer(client: openai.OpenAI) -> None:
    chunks = list(ask(client, "hello", stream=True, stream_options={"include_usage": True}))
    *spoken, usage = chunks
    assert "".join(c.choices[0].delta.content or "" for c in spoken) == "1: hello"
    assert [c.choices[0].finish_reason for c in spoken] == [None] * (len(spoken) - 1) + ["stop"]
    assert spoken[0].choices[0].delta.role == "assistant"
    assert (usage.choices, usage.usage.total_tokens) == ([], 4)
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in ask(client, "hello", stream=True))


def test_what_the_client_sent_back_is_heard(client: openai.OpenAI) -> None:
    first = ask(client, "hello")
    messages = [
        {"role": "user", "content": "hello"},
        first.choices[0].message,
        {"role": "user", "content": [{"type": "text", "text": "and"}]},
    ]
    answer = client.chat.completions.create(model=NAME, messages=messages)
    assert answer.choices[0].message.content == "3: and"


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).owned_by == "minicpmv"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")
    messages: Any = [{"role": "user", "content": "hello"}]
    with pytest.raises(openai.NotFoundError, match="'gpt-4'") as caught:
        client.chat.completions.create(model="gpt-4", messages=messages)
    assert caught.value.code == "model_not_found"


def test_health(server: WebServer) -> None:
    status, _, body = server.request("GET", "/health")
    assert status == 200
    assert json.loads(body) == {"status": "ok", "model": NAME, "requests": 0}


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_does_not_fit(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError, match="the window is 1024"):
        ask(client, "refuse", stream=stream)


def test_an_engine_that_dies(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError, match=DEATH) as caught:
        ask(client, "signal 9")
    assert (caught.value.status_code, caught.value.code) == (503, "engine_died")
    said = []
    with pytest.raises(openai.APIError, match=DEATH):
        for chunk in ask(client, "signal 9", stream=True):
            said.append(chunk.choices[0].delta.content)
    assert said == ["", "half an ans"]
    assert ask(client, "hello").choices[0].message.content == "1: hello"


def test_a_mistake_of_ours_tells_nothing(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        ask(client, "mistake")
    assert "secret" not in str(caught.value)
    assert ask(client, "hello").choices[0].message.content == "1: hello"


def test_a_client_that_goes_in_mid_stream_frees_the_model(
    server: WebServer, client: openai.OpenAI
) -> None:
    stream = ask(client, "count", stream=True)
    heard = [next(stream).choices[0].delta.content for _ in range(4)]
    assert heard == ["", "0 ", "1 ", "2 "]
    stream.close()
    until_requests(server, 0)
    assert ask(client, "hello").choices[0].message.content == "1: hello"


def test_a_client_that_goes_before_its_answer_frees_the_model(server: WebServer) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "count"}]}).encode()
    with connect(server, head(server, len(body)) + body):
        until_requests(server, 1)
    until_requests(server, 0)


def test_the_queue_has_an_end(server: WebServer, client: openai.OpenAI) -> None:
    first = ask(client, "count", stream=True)
    next(first)
    waiting = []
    body = json.dumps({"messages": HELLO}).encode()
    for _ in range(2):
        connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
        key = {"Authorization": f"Bearer {server.key}", "Content-Type": "application/json"}
        connection.request("POST", CHAT, body, key)
        waiting.append(connection)
    until_requests(server, 3)
    with pytest.raises(openai.RateLimitError) as caught:
        ask(client, "hello")
    assert caught.value.code == "queue_full"
    assert caught.value.response.headers["Retry-After"] == "1"
    first.close()
    for connection in waiting:
        answer = json.loads(connection.getresponse().read())
        assert answer["choices"][0]["message"]["content"] == "1: hello"
        connection.close()
    until_requests(server, 0)


def test_other_media_types_and_paths(server: WebServer) -> None:
    assert post(server, {}, **{"Content-Type": "text/plain"})[0] == 415
    for method, path, expected in (
        ("GET", CHAT, 405), ("POST", "/v1/models", 405), ("GET", "/", 404),
        ("GET", "/v1/models/other", 404), ("POST", "/v1/completions", 404),
    ):  # fmt: skip
        status, _, answer = server.request(method, path, b"{}" if method == "POST" else None)
        assert (status, bool(json.loads(answer)["error"]["message"])) == (expected, True)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b"1" * 5000],
)
def test_bodies_that_are_no_request(server: WebServer, body: bytes) -> None:
    status, answer = post(server, body)
    assert status == 400
    assert answer["error"]["message"]


@pytest.mark.parametrize("more", ['"seed": NaN', '"seed": 1e999', '"n": 1, "n": 1'])
def test_json_that_is_not_strict(server: WebServer, more: str) -> None:
    body = f'{{"messages": [{{"role": "user", "content": "hello"}}], {more}}}'
    status, answer = post(server, body.encode())
    assert (status, answer["error"]["code"]) == (400, "invalid_json")


def test_the_end_of_the_server_ends_what_is_under_way(start: Start, tmp_path: Path) -> None:
    with start(tmp_path) as server:
        stream = ask(client_of(server), "count", stream=True)
        next(stream)
        assert server.interrupt() == 0
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)
