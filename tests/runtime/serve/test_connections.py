"""Clients that are slow, silent or many: they keep a connection for a time, never a place."""

from __future__ import annotations

import asyncio
import http.client
import json
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from starlette.requests import Request

from runtime.http import body, connections
from runtime.http.connections import IDLE_SECONDS
from tests.runtime.serve.client import (
    HELLO,
    ask,
    connect,
    head,
    limits_of,
    post,
    requests_of,
    until_requests,
)
from tests.runtime.serve.conftest import Start
from tests.support.waiting import until
from tests.support.web import STAND_IN, WebServer

BODY = json.dumps({"messages": HELLO}).encode()
LATE = IDLE_SECONDS + 60  # on a busy machine


@pytest.fixture
def web(tmp_path: Path) -> Iterator[WebServer]:
    """`chat --web`, whose connections are those of `serve`."""
    with WebServer(STAND_IN, tmp_path) as running:
        yield running


def is_dropped(connection: socket.socket) -> bool:
    """Reads what comes; says whether the other side has ended it."""
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


def test_heads_without_bodies_take_no_place(server: WebServer, client: openai.OpenAI) -> None:
    """Nine filled the queue, for a minute."""
    waiting = [connect(server, head(server, 1000) + b"{") for _ in range(20)]
    time.sleep(0.3)
    assert requests_of(server) == 0
    assert ask(client, "hello").choices[0].message.content == "1: hello"
    for connection in waiting:
        connection.close()
    until_requests(server, 0)


def test_a_client_that_goes_within_its_request(server: WebServer) -> None:
    with connect(server, head(server, 1000) + b"{"):
        time.sleep(0.2)
    assert post(server, {"messages": HELLO})[0] == 200


def test_who_says_nothing_is_dropped(server: WebServer) -> None:
    check_silence(server, head(server, 1000))


def test_who_says_nothing_to_the_page_is_dropped(web: WebServer) -> None:
    own = f"Host: {web.host}:{web.port}\r\nOrigin: {web.origin}\r\n"
    post_head = f"POST {web.root}command HTTP/1.1\r\n{own}Content-Type: application/json\r\n"
    check_silence(web, f"{post_head}Content-Length: 1000\r\n\r\n".encode())


def check_silence(server: WebServer, post_head: bytes) -> None:
    """Before a request, within its head, within its body, and one byte at a time."""
    start = time.monotonic()
    silent = [
        connect(server),
        connect(server, b"GET / HTTP/1.1\r\nHost: "),
        connect(server, post_head),
        connect(server, post_head + b"{"),
    ]
    drip = connect(server, b"GET / HTTP/1.1\r\nX: ")
    drip.settimeout(0.5)
    while not is_dropped(drip):  # it reads for half a second at a time
        assert time.monotonic() - start < LATE
        try:
            drip.sendall(b"x")
        except OSError:
            break
    for connection in silent:
        connection.settimeout(LATE)
        assert is_dropped(connection)
    assert IDLE_SECONDS - 1 < time.monotonic() - start < LATE


def test_a_body_that_comes_slowly_is_taken(server: WebServer) -> None:
    """As long as something comes now and then."""
    with connect(server, head(server, len(BODY))) as connection:
        for i in range(0, len(BODY), 8):
            time.sleep(0.05)
            connection.sendall(BODY[i : i + 8])
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert json.loads(answer.read())["choices"][0]["message"]["content"] == "1: hello"


def test_a_body_has_its_time(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sends a byte every few seconds has a minute in all."""
    monkeypatch.setattr(body, "SECONDS", 0.2)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def read() -> None:
        scope = {"type": "http", "headers": [], "method": "POST", "path": "/"}
        async for _ in body.body_blocks(Request(scope, receive), 1000):
            pass

    with pytest.raises(body.TooSlowError):
        asyncio.run(read())


def test_a_body_that_is_too_large(server: WebServer) -> None:
    with connect(server, head(server, limits_of(server).body + 1)) as connection:
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        code = json.loads(answer.read())["error"]["code"]
    assert (answer.status, code) == (413, "request_too_large")


def test_bodies_have_a_limit_together(server: WebServer) -> None:
    """Each is smaller than what is taken, but they are many, and none comes to its end."""
    size = limits_of(server).body - 100
    sending = [connect(server, head(server, size)) for _ in range(5)]
    block = b" " * (1 << 20)
    for _ in range(size // len(block)):
        for connection in sending:
            connection.sendall(block)
    answered = select.select(sending, [], [], 60)[0]
    answer = http.client.HTTPResponse(answered[0])
    answer.begin()
    assert (answer.status, json.loads(answer.read())["error"]["code"]) == (429, "queue_full")
    for connection in sending:
        connection.close()
    until(lambda: post(server, {"messages": HELLO})[0] == 200)


def test_only_so_many_connections(server: WebServer, client: openai.OpenAI) -> None:
    """The one that was idle longest makes room; an answer under way does not."""
    stream = ask(client, "count", stream=True)
    next(stream)
    idle = [connect(server) for _ in range(connections.LIMIT + 20)]
    idle[0].settimeout(IDLE_SECONDS - 1)
    assert is_dropped(idle[0])
    assert requests_of(server) == 1, "there is room for another"
    assert all(next(stream).choices[0].delta.content for _ in range(3))
    stream.close()
    for connection in idle:
        connection.close()
    until_requests(server, 0)
    assert post(server, {"messages": HELLO})[0] == 200


def test_a_client_that_reads_nothing_holds_no_place(start: Start, tmp_path: Path) -> None:
    """Its answer comes to its end; what it does not read waits for it alone."""
    question = json.dumps(
        {"messages": [{"role": "user", "content": "x" * 600_000}], "stream": True}
    ).encode()
    with start(tmp_path) as server:
        deaf = connect(server, head(server, len(question)) + question)
        until_requests(server, 0)
        assert post(server, {"messages": HELLO})[0] == 200
        deaf.close()


def test_a_second_request_behind_the_first(server: WebServer) -> None:
    """Its body is waited for, but not for ever."""
    data = head(server, len(BODY)) + BODY + head(server, len(BODY))
    with connect(server, data) as connection:
        connection.settimeout(LATE)
        start = time.monotonic()
        assert is_dropped(connection)
        assert IDLE_SECONDS - 1 < time.monotonic() - start < LATE
