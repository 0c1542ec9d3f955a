"""What tests of `serve` ask, and how."""

from __future__ import annotations

import base64
import io
import json
import socket
import sys
from dataclasses import dataclass
from typing import Any

import openai
from PIL import Image

from runtime.serve.app import BODY_LIMIT
from runtime.serve.data_url import PICTURE_LIMIT
from tests.support.serve_stand_in import NAME
from tests.support.waiting import until
from tests.support.web import WebServer

COMMAND = (sys.executable, "-m", "tests.support.serve_stand_in")
PHONE = (sys.executable, "-m", "tests.support.phone_api")
KEY = "a key that nobody knows"
CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]


def client_of(server: WebServer, key: str | None = None) -> openai.OpenAI:
    given = key or server.key or "none"
    return openai.OpenAI(base_url=server.address, api_key=given, max_retries=0, timeout=60)


@dataclass(frozen=True)
class Limits:
    """The most bytes that a server takes."""

    body: int
    picture: int


def is_phone(server: WebServer) -> bool:
    """Whether it is the app's API, not `serve`."""
    return server.program[: len(PHONE)] == PHONE


def limits_of(server: WebServer) -> Limits:
    if is_phone(server):
        return Limits(body=24 << 20, picture=16 << 20)
    return Limits(body=BODY_LIMIT, picture=PICTURE_LIMIT)


def ask(client: openai.OpenAI, content: Any, **more: Any) -> Any:
    messages = [{"role": "user", "content": content}]
    return client.chat.completions.create(model=NAME, messages=messages, **more)


def post(server: WebServer, body: Any, **headers: str | None) -> tuple[int, dict[str, Any]]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, _, answer = server.request("POST", CHAT, raw, headers)
    return status, json.loads(answer)


def said(server: WebServer, messages: list[Any], **fields: Any) -> str:
    """Returns the answer to a conversation."""
    status, answer = post(server, {"messages": messages, **fields})
    assert status == 200, answer
    text: str = answer["choices"][0]["message"]["content"]
    return text


def file_of(size: tuple[int, int] = (30, 20), kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, kind)
    return file.getvalue()


def data_url(size: tuple[int, int] = (30, 20), kind: str = "PNG") -> str:
    return "data:image/png;base64," + base64.b64encode(file_of(size, kind)).decode()


def picture(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, "detail": "auto"}}


def requests_of(server: WebServer) -> int:
    """Returns how many requests have a place."""
    count: int = json.loads(server.request("GET", "/health")[2])["requests"]
    return count


def until_requests(server: WebServer, count: int) -> None:
    """Waits until so many requests have a place."""
    until(lambda: requests_of(server) == count, f"there were never {count} requests")


def connect(server: WebServer, data: bytes = b"") -> socket.socket:
    """Opens a connection and says something."""
    connection = socket.create_connection((server.host, server.port), timeout=60)
    connection.sendall(data)
    return connection


def head(server: WebServer, size: int) -> bytes:
    """Returns the head of a question whose body has so many bytes."""
    key = "" if server.key is None else f"Authorization: Bearer {server.key}\r\n"
    return (
        f"POST {CHAT} HTTP/1.1\r\nHost: {server.host}:{server.port}\r\n{key}"
        f"Content-Type: application/json\r\nContent-Length: {size}\r\n\r\n"
    ).encode()
