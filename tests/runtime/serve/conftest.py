from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.runtime.serve.client import COMMAND, client_of
from tests.support.web import WebServer


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    """One with a model that computes nothing, and places for two that wait."""
    with WebServer(COMMAND, tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture(scope="session")
def client(server: WebServer) -> openai.OpenAI:
    return client_of(server)
