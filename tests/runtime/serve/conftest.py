from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest

from tests.runtime.serve.client import COMMAND, KEY, PHONE, client_of
from tests.support.java import app_logic
from tests.support.web import WebServer

Start = Callable[..., WebServer]


@pytest.fixture(scope="session", params=["serve", "phone"])
def start(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Starts a server with a folder for what it keeps, and options: `serve`, or the app's API."""
    if request.param == "serve":
        return lambda home, *options: WebServer((*COMMAND, *options), home)
    classpath = app_logic(tmp_path_factory)

    def start_phone(home: Path, *options: str) -> WebServer:
        return WebServer((*PHONE, classpath, KEY, *options), home, key=KEY)

    return start_phone


@pytest.fixture(scope="session")
def server(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    """One with a model that computes nothing, and places for two that wait."""
    with start(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture(scope="session")
def client(server: WebServer) -> openai.OpenAI:
    return client_of(server)
