"""Pictures in requests: which addresses are taken, what is refused, which one the model sees."""

from __future__ import annotations

import base64
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from tests.runtime.serve.client import (
    ask,
    client_of,
    data_url,
    file_of,
    limits_of,
    picture,
    post,
    said,
)
from tests.runtime.serve.conftest import Start
from tests.support.serve_stand_in import NAME
from tests.support.web import WebServer

PLAIN = base64.b64encode(file_of()).decode()
SEEN = "1: what seeing 30x20"


def asking(part: Any) -> list[Any]:
    return [{"role": "user", "content": [{"type": "text", "text": "what"}, part]}]


def test_a_picture(client: openai.OpenAI) -> None:
    content = [picture(data_url((30, 20))), {"type": "text", "text": "what"}]
    assert ask(client, content).choices[0].message.content == SEEN


def escaped(plain: str) -> str:
    return plain.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")


def for_addresses(plain: str) -> str:
    """Another file than the others': one whose base64 has all of the characters in question."""
    return plain.replace("+", "-").replace("/", "_")


TAKEN: dict[str, Callable[[str], str]] = {
    "line ends, as `base64` writes them": lambda p: (
        "data:image/png;base64," + "\n".join(textwrap.wrap(p, 76)) + "\n"
    ),
    "line ends of Windows": lambda p: "data:image/png;base64," + "\r\n".join(textwrap.wrap(p, 76)),
    "no type": lambda p: "data:;base64," + p,
    "no type at all": lambda p: "data:;base64, " + p,
    "of bytes": lambda p: "data:application/octet-stream;base64," + p,
    "of another kind of picture": lambda p: "data:image/jpeg;base64," + p,
    "of text": lambda p: "data:text/plain;charset=utf-8;base64," + p,
    "with a name": lambda p: "data:image/png;name=a%20b.png;base64," + p,
    "upper case": lambda p: "DATA:image/PNG;BASE64," + p,
    "space around it": lambda p: " data:image/png; base64," + p + " ",
    "URL-safe": lambda p: "data:image/png;base64," + for_addresses(p),
    "percent signs": lambda p: "data:image/png;base64," + escaped(p),
    "no padding": lambda p: "data:image/png;base64," + p.rstrip("="),
    "too much padding": lambda p: "data:image/png;base64," + p + "==",
}


@pytest.mark.parametrize("spelled", TAKEN.values(), ids=TAKEN.keys())
def test_addresses_that_are_taken(server: WebServer, spelled: Callable[[str], str]) -> None:
    for size in (30, 31, 32, 33):  # of every padding
        plain = base64.b64encode(file_of((size, 20))).decode()
        answer = said(server, asking(picture(spelled(plain))))
        assert answer == f"1: what seeing {size}x20"


def test_an_address_alone(server: WebServer) -> None:
    assert said(server, asking({"type": "image_url", "image_url": data_url()})) == SEEN


@pytest.mark.parametrize(
    ("part", "code"),
    [
        (picture("https://example.org/a.png"), "unsupported_parameter"),
        (picture("file:///etc/passwd"), "unsupported_parameter"),
        (picture("data:image/png,AAAA"), "unsupported_parameter"),
        (picture(PLAIN), "unsupported_parameter"),
        (picture("data:text/html;base64,AAAA"), "invalid_picture"),
        (picture("data:image/png;base64,"), "invalid_picture"),
        (picture("data:image/png;base64,A"), "invalid_picture"),
        (picture("data:image/png;base64,AA==§"), "invalid_picture"),
        (picture("data:image/png;base64,AA=A"), "invalid_picture"),
        (picture("data:image/png;base64,\ud83d"), "invalid_picture"),
        (picture("data:image/png;base64," + base64.b64encode(b"no picture").decode()),
         "invalid_picture"),
        (picture(data_url()[:-40]), "invalid_picture"),
        (picture(data_url(kind="GIF")), "invalid_picture"),
        ({"type": "image_url"}, "invalid_value"),
        ({"type": "image_url", "image_url": {"url": None}}, "invalid_value"),
        ({"type": "input_audio", "input_audio": {}}, "unsupported_parameter"),
        ("text", "unsupported_parameter"),
    ],
    ids=lambda value: ascii(value)[:60],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_pictures_that_are_refused(server: WebServer, part: Any, code: str, stream: bool) -> None:
    status, answer = post(server, {"messages": asking(part), "stream": stream})
    assert (status, answer["error"]["code"]) == (400, code)
    assert len(answer["error"]["message"]) < 400


def test_two_pictures_in_a_turn(server: WebServer) -> None:
    with pytest.raises(openai.BadRequestError, match="second picture"):
        ask(client_of(server), [picture(data_url()), picture(data_url())])


def test_a_picture_that_is_too_large(server: WebServer) -> None:
    url = "data:image/png;base64," + "A" * (limits_of(server).picture * 4 // 3 + 100)
    status, answer = post(server, {"messages": asking(picture(url))})
    assert (status, answer["error"]["code"]) == (413, "picture_too_large")


def test_the_conversation_is_about_the_latest_picture(client: openai.OpenAI) -> None:
    """As in `chat --web`: the model sees one, before the first question that it hears."""
    text = {"type": "text", "text": "what"}
    messages: list[Any] = [
        {"role": "user", "content": [picture(data_url((30, 20))), text]},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": [text, picture(data_url((44, 55)))]},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "and now"},
    ]
    answer = client.chat.completions.create(model=NAME, messages=messages)
    assert answer.choices[0].message.content == "3: and now seeing 44x55"


@pytest.fixture(scope="module")
def cutting(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    """A server whose model cuts pictures."""
    with start(tmp_path_factory.mktemp("home"), "--slices") as running:
        yield running


@pytest.mark.parametrize(
    ("detail", "images"), [("low", ""), ("auto", " in 10"), ("high", " in 10"), (None, " in 10")]
)
def test_the_detail_of_a_picture_that_is_cut(
    cutting: WebServer, detail: str | None, images: str
) -> None:
    part = {"type": "image_url", "image_url": {"url": data_url((130, 120)), "detail": detail}}
    assert said(cutting, asking(part)) == "1: what seeing 130x120" + images


def test_a_low_detail_of_a_picture_that_is_never_cut(server: WebServer) -> None:
    part = {"type": "image_url", "image_url": {"url": data_url((30, 20)), "detail": "low"}}
    assert said(server, asking(part)) == SEEN


def test_a_detail_that_does_not_exist(server: WebServer) -> None:
    part = {"type": "image_url", "image_url": {"url": data_url(), "detail": "ultra"}}
    status, answer = post(server, {"messages": asking(part)})
    assert status == 400
    assert answer["error"]["param"] == "messages[0].content[1].image_url.detail"
    assert answer["error"]["message"].endswith("is 'ultra'; expected auto, low or high")
