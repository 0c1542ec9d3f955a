"""The real adb, where it is installed, with a phone that goes away in the middle."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.engine_client import phone_shell
from runtime.engine_client.adb import Adb
from runtime.engine_client.phone_shell import PhoneAwayError, run_tool
from tests.support.adbd import Adbd, adbd
from tests.support.compare import Record
from tests.support.waiting import until

needs_adb = pytest.mark.skipif(
    shutil.which("adb") is None, reason="adb is not installed: Debian's package adb"
)
pytestmark = needs_adb


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An adb server of the test's own, which leaves the user's alone."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(port))
    monkeypatch.setattr(phone_shell, "_POLL_SECONDS", 0.2)
    try:
        yield
    finally:
        subprocess.run(["adb", "kill-server"], capture_output=True, check=False)


def plug_in(phone: Adbd) -> None:
    """Makes the server know the phone; one on USB it would find by itself."""
    command = ["adb", "connect", phone.serial]

    def is_known() -> bool:  # a server that is just starting may say something else
        return "connected to" in run_tool(command, phone_shell.QUICK_SECONDS).out

    until(is_known, "adb does not connect")


def attach(phone: Adbd) -> Adb:
    adb = Adb(phone.serial, away_seconds=60.0)
    plug_in(phone)
    adb.await_return("it was never there")
    return adb


def test_a_shell_that_is_cut_off_does_not_say_that_it_has_ended(
    server: None, record_property: Record
) -> None:
    """Of adb 29: code 0 and no word. This is why every script says when it has ended."""
    with adbd(1000) as phone:
        script = f"cat > /dev/null; echo {phone_shell.END} 0"
        command = attach(phone).shell_command(script)
        done = subprocess.run(command, input=bytes(5000), capture_output=True, check=False)
    record_property("adb that is cut off", f"code {done.returncode}, {done.stderr!r}")
    assert phone_shell.END.encode() not in done.stdout


def test_a_copy_goes_on_after_each_cut(server: None, tmp_path: Path) -> None:
    content = bytes(range(256)) * 12000
    (tmp_path / "weights").write_bytes(content)
    (tmp_path / "phone").mkdir()
    heard: list[int] = []
    with adbd(1_200_000, 700_000) as phone:
        attach(phone).push(tmp_path / "weights", f"{tmp_path}/phone/w", heard.append)
        assert phone.breaks == []
    assert (tmp_path / "phone/w").read_bytes() == content
    assert [path.name for path in (tmp_path / "phone").iterdir()] == ["w"]
    assert heard.count(0) == 1, "it never starts over"


def test_a_server_that_is_killed(server: None, tmp_path: Path) -> None:
    """A script that had begun is run again, once the phone is back."""
    with adbd() as phone:
        adb = attach(phone)

        def kill() -> None:
            until((tmp_path / "begun").exists)
            subprocess.run(["adb", "kill-server"], capture_output=True, check=False)
            plug_in(phone)

        killer = threading.Thread(target=kill)
        killer.start()
        begun = f"{tmp_path}/begun"
        said = adb.shell(f"[ -e {begun} ] || {{ touch {begun}; sleep 20; }}; echo here")
        killer.join()
    assert said == "here\n"


def test_a_phone_that_is_not_there(server: None) -> None:
    adb = Adb("127.0.0.1:1", away_seconds=0.0)
    with pytest.raises(PhoneAwayError, match=r"within 0 s: error: device '127.0.0.1:1' not found"):
        adb.shell("true")
