"""Who may ask `serve`: names of this machine, other sites' pages, keys."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from starlette.datastructures import Headers

from quantize.errors import ConfigError
from runtime.commands.serve import _key
from runtime.http.guard import NAMES, foreign_request
from runtime.serve.cors import Cors
from runtime.serve.run import check_address
from tests.runtime.serve.client import (
    CHAT,
    COMMAND,
    HELLO,
    KEY,
    ask,
    client_of,
    is_phone,
    post,
)
from tests.support.serve_stand_in import NAME
from tests.support.web import WebServer

PAGE = "http://app.example:3000"


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",  # `:80` is left out
        "127.0.0.1:80",
        "localhost",
        "LOCALHOST",
        "localhost.",
        "Localhost.:8080",
        "localhost:443",  # of a proxy
        "localhost:9000",  # of a tunnel
        "[::1]",
        "[::1]:8080",
        "[0:0:0:0:0:0:0:1]:8080",
    ],
)
def test_names_of_this_machine(server: WebServer, host: str) -> None:
    assert post(server, {"messages": HELLO}, Host=host, Origin=None)[0] == 200
    for scheme in ("http", "https"):  # https: of a proxy; the usual port is left out of it, too
        for origin in (f"{scheme}://{host}", f"{scheme}://{host.lower().removesuffix(':80')}"):
            usual = scheme == "http" or ":80" not in host or ":8080" in host
            status = post(server, {"messages": HELLO}, Host=host, Origin=origin)[0]
            assert status == 200 or not usual, (host, origin)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},  # a name that resolves to 127.0.0.1
        {"Host": "evil.example:80"},
        {"Host": "localhost.evil.example"},
        {"Host": "evil.example@localhost"},
        {"Host": "localhost:80:80"},
        {"Host": "localhost:"},
        {"Host": "localhost:http"},
        {"Host": "[::2]"},
        {"Host": "[localhost]"},
        {"Host": "::1"},
        {"Host": "."},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "http://localhost:1"},
        {"Origin": "https://localhost"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Sec-Fetch-Site": "cross-site", "Origin": None},
        {"Sec-Fetch-Site": "same-site", "Origin": None},
    ],
    ids=str,
)
def test_foreign_requests(server: WebServer, headers: dict[str, str | None]) -> None:
    status, answer = post(server, {"messages": HELLO}, **headers)
    assert (status, answer["error"]["code"]) == (403, "foreign_request")
    assert server.request("GET", "/health", headers=headers)[0] == 403


def test_two_names() -> None:
    raw = [(b"host", b"localhost"), (b"host", b"evil.example")]
    assert foreign_request(Headers(raw=raw), NAMES) is not None
    assert foreign_request(Headers(raw=[]), NAMES) is not None


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    """A server with a key, for two pages."""
    command = (*COMMAND, "--key", KEY, "--cors", PAGE, "--cors", "HTTPS://two.example/")
    with WebServer(command, tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture
def keyed(server: WebServer, request: pytest.FixtureRequest) -> WebServer:
    """A server with a key; the app's always has one."""
    if is_phone(server):
        return server
    with_key: WebServer = request.getfixturevalue("guarded")
    return with_key


def test_a_key(keyed: WebServer) -> None:
    assert ask(client_of(keyed, KEY), "hello").choices[0].message.content == "1: hello"
    for wrong in ("wrong", KEY[:-1], KEY + "x"):
        with pytest.raises(openai.AuthenticationError):
            ask(client_of(keyed, wrong), "hello")
        with pytest.raises(openai.AuthenticationError):
            client_of(keyed, wrong).models.list()
    without: dict[str, str | None] = {"Authorization": None}
    assert keyed.request("GET", "/health", headers=without)[0] == (401 if is_phone(keyed) else 200)
    assert keyed.request("GET", "/v1/models", headers=without)[0] == 401


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (f"Bearer {KEY}", 200),
        (f"bearer {KEY}", 200),
        (f"BEARER  {KEY} ", 200),
        (KEY, 401),
        (f"Basic {KEY}", 401),
        ("Bearer", 401),
        ("Bearer schlüssel", 401),
        ("", 401),
    ],
)
def test_how_a_key_is_sent(keyed: WebServer, given: str, status: int) -> None:
    assert keyed.request("GET", "/v1/models", headers={"Authorization": given})[0] == status


def preflight(server: WebServer, origin: str, **more: str) -> tuple[int, dict[str, str]]:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
        "Sec-Fetch-Site": "cross-site",
    }
    status, headers, _ = server.request("OPTIONS", CHAT, headers=asked | more)
    return status, {name.lower(): value for name, value in headers.items()}


def test_pages_that_are_named_may_ask(guarded: WebServer) -> None:
    for origin in (PAGE, "https://two.example"):
        status, headers = preflight(
            guarded, origin, **{"Access-Control-Request-Private-Network": "true"}
        )
        assert status == 204, "without the key, which a browser does not send with it"
        assert headers["access-control-allow-origin"] == origin
        assert headers["access-control-allow-methods"] == "GET, POST"
        assert "authorization" in headers["access-control-allow-headers"]
        assert headers["access-control-allow-private-network"] == "true"
        assert headers["vary"] == "Origin"
        assert "access-control-allow-credentials" not in headers
        asked = {"Origin": origin, "Sec-Fetch-Site": "cross-site"}
        for key, expected in ((KEY, 200), ("wrong", 401)):  # what was wrong can be read, too
            body = json.dumps({"messages": HELLO, "stream": expected == 200}).encode()
            answer = guarded.request("POST", CHAT, body, asked | {"Authorization": f"Bearer {key}"})
            assert answer[0] == expected
            assert answer[1]["Access-Control-Allow-Origin"] == origin
    assert "access-control-allow-private-network" not in preflight(guarded, PAGE)[1]


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "http://app.example", "https://app.example:3000", "null"]
)
def test_other_pages_may_not(guarded: WebServer, server: WebServer, origin: str) -> None:
    for running in (guarded, server):
        status, headers = preflight(running, origin)
        assert status == 403
        assert "access-control-allow-origin" not in headers
        asked = {"Origin": origin, "Authorization": f"Bearer {KEY}"}
        body = json.dumps({"messages": HELLO}).encode()
        assert running.request("POST", CHAT, body, asked)[0] == 403


def test_by_default_no_page_may(server: WebServer) -> None:
    assert preflight(server, PAGE)[0] == 403
    assert preflight(server, server.origin, **{"Sec-Fetch-Site": "same-origin"})[0] == 405


def test_origins_that_are_none() -> None:
    for wrong in ("*", "app.example", "http://", "http://a b", "null", "http://a/path", "http://ä"):
        with pytest.raises(ConfigError, match=r"--cors is .* expected the origin of a page"):
            Cors([wrong])
    assert len(Cors(["http://a", "http://A:80/", "https://a"]).origins) == 2


def test_only_a_key_opens_it_to_others() -> None:
    check_address("127.0.0.1", None)
    check_address("::1", None)
    check_address("0.0.0.0", KEY)
    for host in ("0.0.0.0", "192.168.1.5", "::"):
        with pytest.raises(ConfigError, match="--api-key"):
            check_address(host, None)
    with pytest.raises(ConfigError, match="expected an address"):
        check_address("localhost:80", None)


def test_with_a_key_others_may_call_it_by_any_name(tmp_path: Path) -> None:
    with WebServer((*COMMAND, "--key", KEY, "--host", "0.0.0.0"), tmp_path) as server:
        given = {"Host": "my-pc.lan:8080", "Authorization": f"Bearer {KEY}", "Origin": None}
        assert server.request("GET", "/v1/models", headers=given)[0] == 200
        assert server.request("GET", "/v1/models", headers=given | {"Authorization": ""})[0] == 401


def test_where_the_key_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def key(**given: object) -> str | None:
        return _key(argparse.Namespace(**{"api_key": None, "api_key_file": None} | given))

    monkeypatch.delenv("MINICPMV_API_KEY", raising=False)
    assert key() is None
    monkeypatch.setenv("MINICPMV_API_KEY", "of the environment")
    assert key() == "of the environment"
    (tmp_path / "key").write_text(f"{KEY}\n")
    assert key(api_key_file=tmp_path / "key") == KEY
    assert key(api_key="given") == "given"
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for path, problem in (
        (tmp_path / "none", "No such file"),
        (tmp_path, "a folder; expected a regular file"),
        (Path("/dev/zero"), "a device; expected a regular file"),
        (tmp_path / "bytes", "invalid start byte"),
    ):
        with pytest.raises(ConfigError, match=rf"--api-key-file .*: cannot be read: .*{problem}"):
            key(api_key_file=path)


def test_the_model_is_told_to_those_with_the_key_only(guarded: WebServer) -> None:
    assert [model.id for model in client_of(guarded, KEY).models.list()] == [NAME]
