"""`serve` as OpenAI's client sees it: answers, streams, refusals, failures, disconnects."""

from __future__ import annotations

import base64
import http.client
import io
import json
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image

from quantize.errors import ConfigError
from runtime.serve.app import BODY_LIMIT
from runtime.serve.request import PICTURE_LIMIT
from runtime.serve.run import check_address
from tests.serve_stand_in import NAME
from tests.web import WebServer

COMMAND = (sys.executable, "-m", "tests.serve_stand_in")
KEY = "a key that nobody knows"
CHAT = "/v1/chat/completions"


def data_url(size: tuple[int, int] = (30, 20), kind: str = "PNG") -> str:
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, kind)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def client_of(server: WebServer, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=server.address, api_key=key, max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    with WebServer(COMMAND, tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: WebServer) -> openai.OpenAI:
    return client_of(server)


def ask(client: openai.OpenAI, content: Any, **more: Any) -> Any:
    messages = [{"role": "user", "content": content}]
    return client.chat.completions.create(model=NAME, messages=messages, **more)


def post(server: WebServer, body: Any, **headers: str | None) -> tuple[int, dict[str, Any]]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, _, answer = server.request("POST", CHAT, raw, headers)
    return status, json.loads(answer)


def until_free(server: WebServer) -> None:
    """Waits until no request is under way."""
    for _ in range(600):
        if json.loads(server.request("GET", "/health")[2])["requests"] == 0:
            return
        time.sleep(0.05)
    raise AssertionError("a request never ended")


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


def picture(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, "detail": "auto"}}


def test_a_picture(client: openai.OpenAI) -> None:
    content = [picture(data_url((30, 20))), {"type": "text", "text": "what"}]
    assert ask(client, content).choices[0].message.content == "1: what seeing 30x20"


def test_the_conversation_is_about_the_latest_picture(client: openai.OpenAI) -> None:
    """As in `chat --web`: the model sees one, before the first question that it hears."""
    text = {"type": "text", "text": "what"}
    messages = [
        {"role": "user", "content": [picture(data_url((30, 20))), text]},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": [text, picture(data_url((44, 55)))]},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "and now"},
    ]
    answer = client.chat.completions.create(model=NAME, messages=messages)
    assert answer.choices[0].message.content == "3: and now seeing 44x55"


def test_options_reach_the_model(client: openai.OpenAI) -> None:
    said = ask(
        client, "options", max_tokens=7, temperature=0.5, top_p=0.25, seed=3, stop=["x", "yz"],
        extra_body={"top_k": 9, "repetition_penalty": 1.5},
    ).choices[0].message.content  # fmt: skip
    for part in (
        "max_new_tokens=7", "do_sample=True", "temperature=0.5", "top_p=0.25", "seed=3",
        "stop=('x', 'yz')", "top_k=9", "repetition_penalty=1.5",
    ):  # fmt: skip
        assert part in said
    greedy = ask(client, "options", temperature=0, stop="x", max_completion_tokens=5)
    assert "do_sample=False" in greedy.choices[0].message.content
    assert "stop=('x',)" in greedy.choices[0].message.content
    assert "max_new_tokens=5" in greedy.choices[0].message.content
    assert "do_sample=True" in ask(client, "options").choices[0].message.content


def test_fields_that_change_nothing_are_taken(client: openai.OpenAI) -> None:
    answer = ask(
        client, "hello", n=1, user="me", presence_penalty=0, frequency_penalty=0.0,
        logprobs=False, response_format={"type": "text"}, tools=[], store=False, logit_bias={},
    )  # fmt: skip
    assert answer.choices[0].message.content == "1: hello"


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"n": 2}, "n"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"logprobs": True}, "logprobs"),
    ({"presence_penalty": 1}, "presence_penalty"),
    ({"nonsense": 1}, "nonsense"),
    ({"temperature": 3}, "temperature"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": -0.1}, "top_p"),
    ({"top_p": 2}, "top_p"),
    ({"top_k": 0}, "top_k"),
    ({"top_k": 1.5}, "top_k"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
    ({"seed": -1}, "seed"),
    ({"seed": "x"}, "seed"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"stop": [""]}, "stop"),
    ({"stop": 3}, "stop"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"more": 1}}, "stream_options"),
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": [{"role": "system", "content": "be kind"}]}, "messages[0].role"),
    ({"messages": [{"role": "assistant", "content": "I begin"}]}, "messages"),
    ({"messages": [{"role": "user", "content": " "}]}, "messages"),
    ({"messages": [{"role": "user", "content": "\ud83d"}]}, "messages"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "a", "tool_calls": [1]}]}, "messages[0].tool_calls"),
    ({"messages": [7]}, "messages[0]"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=str)
def test_what_is_wrong_or_not_supported_is_named(
    server: WebServer, fields: dict[str, Any], param: str
) -> None:
    body = {"model": NAME, "messages": [{"role": "user", "content": "hello"}]} | fields
    status, answer = post(server, body)
    assert (status, answer["error"]["param"]) == (400, param)
    assert answer["error"]["type"] == "invalid_request_error"
    assert param in answer["error"]["message"] or param == "messages"


@pytest.mark.parametrize(
    ("part", "code"),
    [
        (picture("https://example.org/a.png"), "unsupported_parameter"),
        (picture("file:///etc/passwd"), "unsupported_parameter"),
        (picture("data:text/html;base64,AAAA"), "unsupported_parameter"),
        (picture("data:image/png;base64,A"), "invalid_picture"),
        (picture("data:image/png;base64,AA==§"), "invalid_picture"),
        (picture("data:image/png;base64," + base64.b64encode(b"no picture").decode()),
         "invalid_picture"),
        (picture(data_url()[:-40]), "invalid_picture"),
        (picture(data_url(kind="GIF")), "invalid_picture"),
        ({"type": "image_url"}, "invalid_value"),
        ({"type": "image_url", "image_url": data_url()}, "invalid_value"),
        ({"type": "input_audio", "input_audio": {}}, "unsupported_parameter"),
        ("text", "unsupported_parameter"),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_pictures_that_are_refused(server: WebServer, part: Any, code: str, stream: bool) -> None:
    content = [{"type": "text", "text": "what"}, part]
    messages = [{"role": "user", "content": content}]
    status, answer = post(server, {"messages": messages, "stream": stream})
    assert (status, answer["error"]["code"]) == (400, code)
    assert len(answer["error"]["message"]) < 400


def test_two_pictures_in_a_turn(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="second picture"):
        ask(client, [picture(data_url()), picture(data_url())])


def test_a_picture_that_is_too_large(server: WebServer) -> None:
    url = "data:image/png;base64," + "A" * (PICTURE_LIMIT * 4 // 3 + 100)
    content = [picture(url), {"type": "text", "text": "what"}]
    status, answer = post(server, {"messages": [{"role": "user", "content": content}]})
    assert (status, answer["error"]["code"]) == (413, "picture_too_large")


def test_a_body_that_is_too_large(server: WebServer) -> None:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
    connection.putrequest("POST", CHAT)
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(BODY_LIMIT + 1))
    connection.endheaders()
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["error"]["code"]) == (413, "request_too_large")
    connection.close()
    until_free(server)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b"1" * 5000])
def test_bodies_that_are_no_request(server: WebServer, body: bytes) -> None:
    status, answer = post(server, body)
    assert status == 400
    assert answer["error"]["message"]


def test_other_media_types_and_paths(server: WebServer) -> None:
    assert post(server, {}, **{"Content-Type": "text/plain"})[0] == 415
    for method, path, expected in (
        ("GET", CHAT, 405), ("POST", "/v1/models", 405), ("GET", "/", 404),
        ("GET", "/v1/models/other", 404), ("POST", "/v1/completions", 404),
    ):  # fmt: skip
        status, _, answer = server.request(method, path, b"{}" if method == "POST" else None)
        assert (status, bool(json.loads(answer)["error"]["message"])) == (expected, True)


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
    with pytest.raises(openai.InternalServerError, match="has ended") as caught:
        ask(client, "die")
    assert (caught.value.status_code, caught.value.code) == (503, "engine_died")
    said = []
    with pytest.raises(openai.APIError, match="has ended"):
        for chunk in ask(client, "die", stream=True):
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
    until_free(server)
    assert ask(client, "hello").choices[0].message.content == "1: hello"


def test_a_client_that_goes_before_its_answer_frees_the_model(server: WebServer) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "count"}]}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {server.host}:{server.port}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((server.host, server.port)) as connection:
        connection.sendall(head.encode() + body)
        while json.loads(server.request("GET", "/health")[2])["requests"] == 0:
            time.sleep(0.02)
    until_free(server)


def test_a_client_that_goes_within_its_request(server: WebServer) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {server.host}:{server.port}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
    with socket.create_connection((server.host, server.port)) as connection:
        connection.sendall(head.encode())
        while json.loads(server.request("GET", "/health")[2])["requests"] == 0:
            time.sleep(0.02)
    until_free(server)


def test_the_queue_has_an_end(server: WebServer, client: openai.OpenAI) -> None:
    first = ask(client, "count", stream=True)
    next(first)
    waiting = []
    body = json.dumps({"messages": [{"role": "user", "content": "hello"}]}).encode()
    for _ in range(2):
        connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
        connection.request("POST", CHAT, body, {"Content-Type": "application/json"})
        waiting.append(connection)
    while json.loads(server.request("GET", "/health")[2])["requests"] < 3:
        time.sleep(0.02)
    with pytest.raises(openai.RateLimitError) as caught:
        ask(client, "hello")
    assert caught.value.code == "queue_full"
    assert caught.value.response.headers["Retry-After"] == "1"
    first.close()
    for connection in waiting:
        answer = json.loads(connection.getresponse().read())
        assert answer["choices"][0]["message"]["content"] == "1: hello"
        connection.close()
    until_free(server)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
    ids=str,
)
def test_foreign_requests(server: WebServer, headers: dict[str, str | None]) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}]}
    status, answer = post(server, body, **headers)
    assert (status, answer["error"]["code"]) == (403, "foreign_request")
    assert server.request("GET", "/health", headers=headers)[0] == 403


def test_a_key(tmp_path: Path) -> None:
    with WebServer((*COMMAND, "--key", KEY), tmp_path) as server:
        assert ask(client_of(server, KEY), "hello").choices[0].message.content == "1: hello"
        for wrong in ("wrong", KEY[:-1], KEY + "x"):
            with pytest.raises(openai.AuthenticationError):
                ask(client_of(server, wrong), "hello")
            with pytest.raises(openai.AuthenticationError):
                client_of(server, wrong).models.list()
        assert server.request("GET", "/health")[0] == 200
        assert server.request("GET", "/v1/models")[0] == 401


def test_ctrl_c_ends_what_is_under_way(tmp_path: Path) -> None:
    with WebServer(COMMAND, tmp_path) as server:
        stream = ask(client_of(server), "count", stream=True)
        next(stream)
        assert server.interrupt() == 0
        with pytest.raises(openai.APIError, match="about to end"):
            list(stream)


def test_only_a_key_opens_it_to_others() -> None:
    check_address("127.0.0.1", None)
    check_address("::1", None)
    check_address("0.0.0.0", KEY)
    for host in ("0.0.0.0", "192.168.1.5", "::"):
        with pytest.raises(ConfigError, match="--api-key"):
            check_address(host, None)
    with pytest.raises(ConfigError, match="expected an address"):
        check_address("localhost:80", None)
