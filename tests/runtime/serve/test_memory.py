"""A server gives back what a large picture took, however its answer ended."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from tests.runtime.serve.client import CHAT, COMMAND, picture
from tests.support.serve_stand_in import NAME
from tests.support.web import STAND_IN, WebServer

SIZE = (7000, 6000)  # 160 MiB decoded
KEPT_LIMIT = 40 << 20  # of a request's own text, and what the server learned by it


def large_png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", SIZE, "red").save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def server(tmp_path: Path) -> WebServer:
    if not Path("/proc/self/status").exists():
        pytest.skip("there is no /proc here")
    return WebServer(COMMAND, tmp_path)


@pytest.mark.parametrize(
    ("question", "status"), [("hello", 200), ("refuse", 400), ("signal 9", 503), ("mistake", 500)]
)
def test_serve(server: WebServer, question: str, status: int) -> None:
    url = "data:image/png;base64," + base64.b64encode(large_png()).decode()
    content = [picture(url), {"type": "text", "text": question}]
    body = json.dumps({"model": NAME, "messages": [{"role": "user", "content": content}]})
    with server:
        before = server.memory_bytes()
        for _ in range(3):
            assert server.request("POST", CHAT, body.encode())[0] == status
        assert server.memory_bytes() - before < KEPT_LIMIT


def test_the_page(tmp_path: Path) -> None:
    """The latest picture is remembered only if it is small."""
    with WebServer(STAND_IN, tmp_path) as server:
        before = server.memory_bytes()
        headers = {"Content-Type": "application/octet-stream"}
        for _ in range(2):
            assert server.request("POST", "picture", large_png(), headers)[0] == 204
        assert server.memory_bytes() - before < KEPT_LIMIT
