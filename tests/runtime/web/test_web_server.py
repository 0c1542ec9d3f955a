"""`chat --web`: who is let in, what is refused, and what it does beside the page."""

from __future__ import annotations

import json
import re
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from convert import cli
from runtime.http.guard import HEADERS
from runtime.web.server import COMMAND_LIMIT, PAGE
from runtime.web.settings import RANGES
from tests.support.eval_data import SAMPLE
from tests.support.web import STAND_IN, Listening, WebServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    with WebServer(STAND_IN, tmp_path_factory.mktemp("home")) as running:
        yield running


def test_it_listens_on_loopback_only(server: WebServer) -> None:
    assert server.host == "127.0.0.1"
    assert re.fullmatch(r"/[\w-]{32}/", server.root)
    table = Path("/proc/net/tcp")
    if not table.exists():
        pytest.skip("the list of sockets is Linux's")
    listening = [line.split()[1] for line in table.read_text().splitlines() if " 0A " in line]
    assert f"0100007F:{server.port:04X}" in listening
    assert f"00000000:{server.port:04X}" not in listening


def test_the_page_and_its_headers(server: WebServer) -> None:
    for path in PAGE.iterdir():
        if path.suffix != ".md":
            status, headers, body = server.request("GET", path.name)
            assert (status, body) == (200, path.read_bytes())
            for name, value in HEADERS.items():
                assert headers[name] == value
            assert "server" not in headers
    assert server.request("GET", "")[2] == (PAGE / "index.html").read_bytes()


def test_the_policy_is_the_apps() -> None:
    """The page is the same, and so is what it may do."""
    java = (PAGE.parent / "app/java/org/minicpmv/core/PageFiles.java").read_text("utf-8")
    assert HEADERS["Content-Security-Policy"] in re.sub(r'"\s*\+\s*"', "", java)


def test_the_page_explains_every_range() -> None:
    for language in ("en", "zh"):
        text = (PAGE / f"texts_{language}.js").read_text("utf-8")
        names = re.findall(r"^  (\w+): '", text, re.M)
        for name in RANGES:
            assert (names.count(name), names.count(f"{name}Note")) == (1, 1), (language, name)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},  # a name that resolves to 127.0.0.1
        {"Host": "evil.example:80"},
        {"Host": "127.0.0.1:http"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
@pytest.mark.parametrize("request_", [("GET", ""), ("GET", "events"), ("POST", "command")])
def test_foreign_requests(
    server: WebServer, request_: tuple[str, str], headers: dict[str, str]
) -> None:
    body = b'{"do": "hello"}' if request_[0] == "POST" else None
    status, answered, said = server.request(*request_, body, headers)
    assert status == 403
    assert b"<" not in said
    assert answered["Content-Security-Policy"]


def test_a_post_says_where_it_comes_from(server: WebServer) -> None:
    assert server.request("POST", "command", b'{"do": "hello"}', {"Origin": None})[0] == 403
    assert server.request("GET", "", headers={"Origin": None})[0] == 200
    local = {"Host": f"LOCALHOST:{server.port}", "Origin": f"http://localhost:{server.port}"}
    assert server.request("POST", "command", b'{"do": "hello"}', local)[0] == 204


def test_two_hosts(server: WebServer) -> None:
    own = f"Host: {server.host}:{server.port}\r\n"
    for hosts in (own + "Host: evil.example\r\n", ""):
        with socket.create_connection((server.host, server.port)) as connection:
            text = f"GET {server.root} HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n"
            connection.sendall(text.encode())
            assert connection.recv(99).split()[1] in (b"400", b"403")


@pytest.mark.parametrize("path", ["/", "/index.html", "/wrong/", "/{almost}/", "/{part}/", "//"])
def test_without_the_secret(server: WebServer, path: str) -> None:
    secret = server.root.strip("/")
    other = "A" if secret[-1] != "A" else "B"
    path = path.format(almost=secret[:-1] + other, part=secret[:-1])
    assert server.request("GET", path)[0] == 403
    assert server.request("POST", path + "command", b'{"do": "hello"}')[0] == 403


@pytest.mark.parametrize(
    "path",
    [
        "BRIDGE.md", "../index.html", "..%2findex.html", "%2e%2e/%2e%2e/README.md", "./index.html",
        "index.html/", "index.html%00", "index.html%00.js", "/etc/passwd",
        "%2f%2fetc/passwd", "%2fetc%2fpasswd",
        "..\\index.html", "notices.txt", "picture/", "picture/../chats",
        "picture/..%2f..%2flog.txt", "picture/x", "picture/" + "0" * 36, "picture/" + "/" * 36,
        "%ff", "x" * 5000,
    ],
)  # fmt: skip
def test_hostile_paths(server: WebServer, path: str) -> None:
    status, _, body = server.request("GET", server.root + path)
    assert status in (404, 405)
    assert len(body) < 100


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", ""), ("PUT", "command"), ("DELETE", "events"), ("GET", "command"),
        ("OPTIONS", "command"), ("GET", "picture"), ("POST", "log"), ("TRACE", ""),
        ("PATCH", "picture"), ("POST", "index.html"),
    ],
)  # fmt: skip
def test_wrong_methods(server: WebServer, method: str, path: str) -> None:
    assert server.request(method, path)[0] == 405


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"\xff", b"[]", b"1", b'{"do": 1}', b'{"do": "format"}', b'{"do": "import"}',
        b"[" * 100_000, b'{"do": "send", "text": 1}', b'{"do": "send", "text": "x", "from": "y"}',
        b'{"do": "send", "text": "x", "picture": 1}', b'{"do": "open", "chat": []}',
        b'{"do": "send", "text": "x", "from": 1e400, "chat": []}',
        b'{"do": "stop", "do": "hello"}', b'{"do": "hello", "x": NaN}',
    ],
)  # fmt: skip
def test_what_is_no_command(server: WebServer, body: bytes) -> None:
    status, _, said = server.request("POST", "command", body)
    assert status == (400 if body != b'{"do": "send", "text": "x", "from": "y"}' else 204)
    assert len(said) < 300


def test_media_types(server: WebServer) -> None:
    """What a form of a foreign page could send is no command."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None):
        for path in ("command", "picture"):
            status, _, _ = server.request("POST", path, b"{}", {"Content-Type": kind})
            assert status == 415


def test_oversized_commands(server: WebServer) -> None:
    whole = b'{"do": "hello", "x": "' + b"x" * COMMAND_LIMIT + b'"}'
    assert server.request("POST", "command", whole)[0] == 413
    header = {"Content-Length": str(1 << 60)}
    assert server.request("POST", "command", b"", header)[0] == 413
    chunked = {"Content-Length": None, "Transfer-Encoding": "chunked"}
    body = f"{len(whole):x}\r\n".encode() + whole + b"\r\n0\r\n\r\n"
    assert server.request("POST", "command", body, chunked)[0] == 413


def test_oversized_and_broken_pictures(server: WebServer, tmp_path: Path) -> None:
    with server.listen() as events:
        octets = {"Content-Type": "application/octet-stream", "Content-Length": str(1 << 40)}
        assert server.request("POST", "picture", b"", octets)[0] == 413
        assert "larger than 200 MiB" in events.until("error", code="invalid_picture")["message"]
        half = (PAGE.parents[1] / "configs/demo/sample.png").read_bytes()[:300]
        heic = b"\0\0\0\x18ftypheic" + b"\0" * 50
        for content, said in (
            (half, "a PNG that"),
            (heic, "HEIC"),
            (b"", "JPEG"),
            (b"<svg/>", "PNG"),
        ):
            assert server.upload(content) == 204
            assert said in events.until("error", code="invalid_picture")["message"]
    assert list((server.folder / "pictures").iterdir()) == []


def test_an_upload_that_breaks_off_leaves_nothing(server: WebServer) -> None:
    with server.listen() as events:
        with socket.create_connection((server.host, server.port)) as connection:
            lines = (
                f"POST {server.root}picture HTTP/1.1", f"Host: {server.host}:{server.port}",
                f"Origin: {server.origin}", "Content-Type: application/octet-stream",
                "Content-Length: 1000", "", "half",
            )  # fmt: skip
            connection.sendall("\r\n".join(lines).encode())
        events.until("error")
    assert list((server.folder / "pictures").iterdir()) == []


def test_events_begin_with_what_there_is(tmp_path: Path) -> None:
    with WebServer(STAND_IN, tmp_path) as server:
        with server.listen() as events:
            events.until_idle()
            assert server.command(do="send", text="count") == 204
            events.until("text", at=2)
            with server.listen() as late:
                shown = ""
                for event in late.all_until("text", at=10):  # the digits before it took two each
                    if event["event"] == "chat":
                        shown = event["partial"]
                    elif event["event"] == "text":
                        assert event["at"] <= len(shown)
                        shown += event["text"][len(shown) - event["at"] :]
                assert shown == "0 1 2 3 4 5 "
            assert server.command(do="send", text="another") == 204
            assert events.until("error")["code"] == "busy"
            server.command(do="stop")
            chat = _answered(events)
            assert chat["turns"][1]["stop"] == "cancelled"
            server.command(do="send", text="refuse", chat=chat["id"])
            assert events.until("error")["code"] == "prompt_too_long"
            events.until_idle()
            server.command(do="delete", chat=chat["id"])
            events.until("state", chats=[])
            assert list((server.folder / "chats").iterdir()) == []
            assert server.interrupt() == 0  # though a page listens
            assert events.is_over()


def test_chats_and_settings_outlive_the_server(tmp_path: Path) -> None:
    with WebServer(STAND_IN, tmp_path) as server, server.listen() as events:
        events.until_idle()
        server.command(do="settings", settings={"window": 256, "top_p": 7, "language": "zh"})
        server.command(do="send", text="中文 😀")
        assert _answered(events)["turns"][1]["text"] == "1: 中文 😀"
    assert stat.S_IMODE(server.folder.stat().st_mode) == 0o700
    (server.folder / "chats" / f"{'0' * 36}.json").write_text("damaged")
    with WebServer(STAND_IN, tmp_path) as server, server.listen() as events:
        state = events.until_idle()
        assert [chat["title"] for chat in state["chats"]] == ["中文 😀"]
        assert (state["settings"]["window"], state["settings"]["top_p"]) == (256, 0.8)
        assert state["language"] == "zh"
        server.command(do="send", text="refuse")
        assert events.until("error")["message"] == "the window is 256"


def test_an_id_that_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    """Half of a UTF-16 pair; in a question's text both hosts refuse it: tests/android/contract."""
    with WebServer(STAND_IN, tmp_path) as server, server.listen() as events:
        events.until_idle()
        assert server.command(do="send", text="c", chat="\ud800") == 204
        error = events.until("error")
        assert error["code"] == "invalid_text"
        assert "lone surrogate" in error["message"]
    assert list((server.folder / "chats").iterdir()) == []


def test_pictures_of_a_damaged_chat_stay(tmp_path: Path) -> None:
    """Once it is mended it has them; those that no chat shows go then."""
    with WebServer(STAND_IN, tmp_path) as server, server.listen() as events:
        events.until_idle()
        for asked in (True, False):
            server.upload(SAMPLE.read_bytes())
            picture = events.until("picture")["picture"]["id"]
            if asked:
                server.command(do="send", text="what", picture=picture)
                _answered(events)
        server.command(do="drop")  # else the next question is about it
    (path,) = (server.folder / "chats").iterdir()
    pictures = {found.name for found in (server.folder / "pictures").iterdir()}
    assert len(pictures) == 4
    whole = path.read_bytes()
    for damaged in (whole[:-9], whole.replace(b'"changed": ', b'"changed": 1e999, "x": ')):
        path.write_bytes(damaged)
        with WebServer(STAND_IN, tmp_path) as server, server.listen() as events:
            assert events.until_idle()["chats"] == []
        assert path.read_bytes() == damaged
        assert {found.name for found in (server.folder / "pictures").iterdir()} == pictures
    path.write_bytes(whole)
    with WebServer(STAND_IN, tmp_path) as server, server.listen() as events:
        (chat,) = events.until_idle()["chats"]
        assert chat["title"] == "what"
        (turn, _) = json.loads(whole)["turns"]
        assert server.request("GET", f"picture/{turn['picture']}")[0] == 200
    assert len(list((server.folder / "pictures").iterdir())) == 2


def test_pieces_count_as_scripts_do(tmp_path: Path) -> None:
    """A character outside the basic plane is two units there."""
    with WebServer(STAND_IN, tmp_path) as server, server.listen() as events:
        events.until_idle()
        server.command(do="send", text="😀😀😀")
        heard: list[dict[str, Any]] = []
        while len("".join(event["text"] for event in heard)) < len("1: 😀😀😀"):
            heard.append(events.until("text"))
        assert [event["at"] for event in heard] == [0, 2, 5]


def test_one_server_per_folder(tmp_path: Path) -> None:
    with WebServer(STAND_IN, tmp_path):
        with pytest.raises(AssertionError, match="another `minicpmv chat --web` uses it"):
            WebServer(STAND_IN, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--web", "--prompt", "x"], "--prompt and --json do not work with --web"),
        (["--web", "--json"], "--prompt and --json do not work with --web"),
        (["--port", "1"], "--port and --no-open need --web"),
        (["--no-open"], "--port and --no-open need --web"),
        (["--web", "--port", "65536"], "--port is 65536"),
        (["/no/such/model", "--web"], "/no/such/model"),
        (["--web", "--no-open", "--image", "/no/such.png"], "/no/such.png: No such file"),
    ],
)
def test_mistakes_on_the_command_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    problem: str,
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert cli.main(["chat", *arguments]) == 2
    assert problem in capsys.readouterr().err.splitlines()[-1]


def test_a_port_that_is_taken_and_the_browser(
    tmp_path: Path, server: WebServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reference on the demo; the browser is a script that writes the address."""
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    browser.chmod(0o755)
    command = [sys.executable, "-m", "convert.cli", "chat", "--web", "--device", "cpu"]
    with pytest.raises(AssertionError, match=f"port {server.port} .* is not available"):
        WebServer([*command, "--port", str(server.port)], tmp_path)
    environment = ["env", f"BROWSER={browser} %s"]
    with WebServer([*environment, *command], tmp_path) as running, running.listen() as events:
        assert events.until_idle()["can"] == ["bench"]
        assert (tmp_path / "opened").read_text().strip() == running.address
        running.command(do="settings", settings={"do_sample": False})
        running.command(do="send", text="Hello")
        assert _answered(events)["turns"][1]["text"]


def _answered(events: Listening) -> dict[str, Any]:
    """Returns a chat once its last question is answered."""
    while True:
        event = events.until("chat")
        if "chat" in event and "partial" not in event and len(event["chat"]["turns"]) % 2 == 0:
            chat: dict[str, Any] = event["chat"]
            return chat
