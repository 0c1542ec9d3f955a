"""The panel of the server for other apps, and what the app counts and keeps of it."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from tests.android.phone import Phone

Start = Callable[..., "Phone"]


def _open(phone: Phone) -> None:
    phone.page.click("#open-settings")
    phone.page.click("#open-api")


def _switch_on(phone: Phone) -> tuple[str, str]:
    """Switches the server on; returns its address and its token."""
    _open(phone)
    phone.page.click("#api-on")
    phone.until("document.querySelectorAll('#api dd code').length === 3")
    address, token, model = phone.page.locator("#api dd code").all_inner_texts()
    assert model == "minicpm-v"
    return address, token


def _get(address: str, token: str | None) -> int:
    parts = urlsplit(address)
    assert parts.hostname == "127.0.0.1" and parts.port is not None
    connection = HTTPConnection(parts.hostname, parts.port, timeout=60)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    connection.request("GET", f"{parts.path}/models", headers=headers)
    status = connection.getresponse().status
    connection.close()
    return status


def test_the_ordinary_app_has_no_server(start: Start) -> None:
    phone = start()
    phone.page.click("#open-settings")
    assert phone.page.locator("#open-api").count() == 0


def test_it_is_off_until_it_is_switched_on(start: Start) -> None:
    phone = start(api=0)
    _open(phone)
    assert not phone.page.is_checked("#api-on")
    assert phone.page.locator("#api dd").count() == 0
    phone.page.click("#api .close")
    address, token = _switch_on(phone)
    phone.until_asked({"host": "serving", "on": True})
    assert _get(address, token) == 200
    phone.page.click("#api-on")
    phone.until_asked({"host": "serving", "on": False})
    phone.until("document.querySelector('#api dd') === null")
    with socket.socket() as closed:
        assert closed.connect_ex(("127.0.0.1", urlsplit(address).port)) != 0


def test_requests_without_the_token_are_counted(start: Start) -> None:
    phone = start(api=0)
    address, token = _switch_on(phone)
    assert [_get(address, given) for given in (None, "wrong", token)] == [401, 401, 200]
    phone.until("document.querySelector('#apiRefused').textContent === '2'")


def test_a_new_token_ends_the_old_one(start: Start) -> None:
    phone = start(api=0)
    _, token = _switch_on(phone)
    phone.page.click("#api-renew")
    shown = "[...document.querySelectorAll('#api dd code')].map((e) => e.textContent)"
    phone.until(f"{shown}.length === 3 && {shown}[1] !== '{token}'")
    address, fresh, _ = phone.page.locator("#api dd code").all_inner_texts()
    assert [_get(address, given) for given in (token, fresh)] == [401, 200]
    phone.page.locator("#api dd button").nth(1).click()
    phone.until_asked({"host": "copy", "text": fresh})


def test_a_port_that_is_taken(start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        phone = start(api=taken.getsockname()[1])
        _open(phone)
        phone.page.click("#api-on")
        phone.until("document.querySelector('#api .failed') !== null")
        said = phone.page.inner_text("#api .failed")
        assert "Another app uses this port." in said
        assert f"port {taken.getsockname()[1]} cannot be used" in said
    phone.return_to_app()
    phone.until("document.querySelectorAll('#api dd code').length === 3")
    assert phone.page.locator("#api .failed").count() == 0


def test_a_port_out_of_range_is_not_taken(start: Start) -> None:
    phone = start(api=0)
    _open(phone)
    phone.page.fill("#api-port", "80")
    phone.page.keyboard.press("Tab")
    assert phone.page.input_value("#api-port") == "0"


def test_the_log_holds_no_token(start: Start, tmp_path: Path) -> None:
    phone = start(api=0)
    _, token = _switch_on(phone)
    assert json.loads((tmp_path / "app-0/files/api.json").read_text())["token"] == token
    phone.page.click("#api .close")
    phone.page.click("#open-settings")
    phone.page.get_by_role("button", name="Save the log").click()

    def saved() -> list[dict[str, Any]]:
        return [asked for asked in phone.asked if asked["host"] == "save"]

    for _ in range(1200):
        phone.pump()
        if saved():
            break
        phone.page.wait_for_timeout(50)
    (log,) = saved()
    assert "minicpm" in log["name"] and token not in log["text"]
