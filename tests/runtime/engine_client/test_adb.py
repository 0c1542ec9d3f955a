"""The client of adb, on a stand-in that fails in the ways that adb fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.engine_client import adb as module
from runtime.engine_client.adb import Adb, connect
from runtime.engine_client.phone_shell import PhoneAwayError, PhoneError
from tests.support.fake_phone import SERIAL, FakePhone


@pytest.mark.parametrize(
    ("devices", "problem"),
    [
        ("", "no phone is connected; plug one in and allow USB debugging"),
        ("A\tdevice\nB\tdevice\n", r"2 phones are connected: A, B; choose one with --serial"),
        ("A\tunauthorized\n", r"phone A is not ready \(unauthorized\): it asks whether it trusts"),
        ("A\toffline\n", r"phone A is not ready \(offline\): it does not answer; unplug it"),
        ("A\tno permissions (user in plugdev group; see [http])\n", "may not use its USB port"),
        ("A\trecovery\n", r"not ready \(recovery\): it is in recovery mode"),
        ("A\tsomething new\n", r"not ready \(something new\): try again"),
    ],
)
def test_phones_that_cannot_be_used(phone: FakePhone, devices: str, problem: str) -> None:
    phone.write("devices", devices)
    with pytest.raises(PhoneError, match=problem):
        connect()


def test_the_phone_is_chosen_by_its_serial(
    phone: FakePhone, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone.write("devices", "A\tdevice\nB\tdevice\nC\toffline\n")
    assert connect("B").serial == "B"
    monkeypatch.setenv("ANDROID_SERIAL", "A")
    assert connect().serial == "A"
    assert connect("B").serial == "B"
    with pytest.raises(PhoneError, match="phone D is not connected; `adb devices` lists A, B, C"):
        connect("D")
    with pytest.raises(PhoneError, match=r"C is not ready \(offline\): it does not answer"):
        connect("C")


def test_a_missing_adb_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PhoneError, match=r"adb is not installed.*sudo apt-get install adb"):
        connect()


@pytest.mark.parametrize(
    "noise",
    [
        "* daemon not running; starting now at tcp:5037\n* daemon started successfully",
        "adb server version (39) doesn't match this client (41); killing...\n"
        "* daemon started successfully",
        "adb server is out of date.  killing...\n* daemon started successfully *",
    ],
)
def test_what_adb_says_of_its_server_is_not_the_phones(phone: FakePhone, noise: str) -> None:
    phone.write("noise", noise)
    adb = connect()
    phone.write("noise", noise)
    assert adb.info().model == "Pixel"
    phone.write("noise", noise)
    assert adb.free_bytes("/sdcard") == 1 << 40


def test_a_server_that_does_not_start(phone: FakePhone) -> None:
    phone.write("server", "* failed to start daemon\nerror: cannot connect to daemon")
    with pytest.raises(
        PhoneError, match="failed: error: cannot connect to daemon; try `adb kill-s"
    ):
        connect()


def test_what_a_phone_is(phone: FakePhone) -> None:
    info = connect().info()
    assert (info.model, info.api, info.abis) == ("Pixel", 26, ("arm64-v8a", "armeabi-v7a"))
    assert info.memory_bytes == 8000000 * 1024
    phone.write("getprop.ro.build.version.sdk", "\n")
    with pytest.raises(PhoneError, match="does not say which Android"):
        connect().info()


def test_a_phone_that_does_not_answer(
    phone: FakePhone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights").write_bytes(bytes(3 << 20))  # more than a pipe holds
    phone.write("hangs", "")
    with pytest.raises(
        PhoneError, match="ABC: install took too long; is the phone still connected"
    ):
        Adb(SERIAL).run("install", "install", seconds=0.3)
    monkeypatch.setattr(module, "QUICK_SECONDS", 0.3)
    with pytest.raises(PhoneError, match="`adb devices` does not answer; try `adb kill-server`"):
        connect()
    problem = Adb(SERIAL)._append(tmp_path / "weights", 0, "/sdcard/weights", lambda count: None)
    assert problem == "the phone takes nothing any more"


def test_an_adb_that_does_not_start(
    phone: FakePhone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin" / "adb").write_text("no program")
    with pytest.raises(PhoneError, match="adb: does not start: Exec format error"):
        connect()


def test_a_shell_that_never_ends_by_itself(phone: FakePhone) -> None:
    """The phone is there all the time: some tries, and adb's own words."""
    phone.write("fails", "shell error: closed")
    with pytest.raises(PhoneError, match="`true` failed: error: closed") as told:
        connect().shell("true")
    assert not isinstance(told.value, PhoneAwayError)
