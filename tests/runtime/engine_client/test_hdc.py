"""What differs between hdc and adb; `test_phone_shell.py` and `test_phone.py` test the rest."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from runtime.engine_client.hdc import Hdc, connect
from runtime.engine_client.hdc_relay import _SHORT_BYTES
from runtime.engine_client.phone_shell import EngineWork, PhoneError
from tests.support.fake_phone import SERIAL, FakePhone, fake_phone
from tests.support.waiting import until

FOLDER = "/data/local/tmp"
ROW = "{}\t\tUSB\t{}\tlocalhost\thdc\n"


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePhone:
    return fake_phone(tmp_path, monkeypatch, "hdc")


@pytest.mark.parametrize(
    ("devices", "problem"),
    [
        ("", "no phone is connected; plug one in .*`hdc list targets -v` lists it"),
        (ROW.format("A", "Connected") + ROW.format("B", "Connected"), "2 phones .*: A, B; choose"),
        (ROW.format("A", "Unauthorized"), r"A is not ready \(Unauthorized\): it asks whether"),
        (ROW.format("A", "Offline"), r"A is not ready \(Offline\): it does not answer"),
        (ROW.format("A", "Ready"), r"A is not ready \(Ready\): try again"),
        ("COM5\t\tUART\tReady\tlocalhost\thdc\n", "no phone is connected"),
    ],
)
def test_devices_that_cannot_be_used(phone: FakePhone, devices: str, problem: str) -> None:
    phone.write("devices", devices)
    with pytest.raises(PhoneError, match=problem):
        connect()


def test_the_device_is_chosen_by_its_key(phone: FakePhone) -> None:
    phone.devices({"A": "Connected", "192.168.0.9:5555": "Connected"})
    assert connect("192.168.0.9:5555").serial == "192.168.0.9:5555"
    with pytest.raises(PhoneError, match="phone B is not connected; `hdc list targets -v` lists A"):
        connect("B")


def test_a_missing_hdc_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PhoneError, match=r"hdc is not installed; it is in the folder toolchains"):
        connect()


def test_a_server_that_does_not_start(phone: FakePhone) -> None:
    """hdc's exit code is 0 even then."""
    phone.write("server", "Connect server failed")
    with pytest.raises(PhoneError, match="failed: Connect server failed; try `hdc kill -r`"):
        connect()


def test_what_a_board_is(phone: FakePhone) -> None:
    info = connect().info()
    assert (info.model, info.api, info.abis) == ("Pixel", 26, ("arm64-v8a",))
    phone.write("param.const.ohos.apiversion", "Get parameter fail")
    with pytest.raises(PhoneError, match="does not say which system"):
        connect().info()


def test_the_exit_code_is_the_script_s(phone: FakePhone) -> None:
    """hdc's own is 0."""
    hdc = connect()
    assert hdc.shell("echo one; echo two") == "one\ntwo\n"
    assert hdc.try_shell("exit 3") is None
    with pytest.raises(PhoneError, match=r"ABC: `ls /nothing; exit 3` failed: .*No such file"):
        hdc.shell("ls /nothing; exit 3")


def test_a_file_that_is_refused(phone: FakePhone, tmp_path: Path) -> None:
    """By a line, not by an exit code."""
    (tmp_path / "file").write_text("content")
    with pytest.raises(PhoneError, match=r"file send .* failed: Error opening file: no such file"):
        connect().send_file(tmp_path / "file", f"{FOLDER}/nothing/file")
    phone.write("fails", "file [E005003] The parameter is missing")
    with pytest.raises(PhoneError, match=r"file recv /sdcard/x failed: \[E005003\] The parameter"):
        connect().pull("/sdcard/x", tmp_path / "x")


def start(phone: FakePhone, script: str) -> subprocess.Popen[bytes]:
    program = phone.path(f"{FOLDER}/program")
    program.write_text(f"#!/bin/sh\n{script}\n")
    work = EngineWork(
        folder=FOLDER, exchange="exchange", program="./program", variables="A=b ", end_mark="END"
    )
    pipe = subprocess.PIPE
    return subprocess.Popen(
        Hdc(SERIAL).engine_command(work),
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
    )


def test_an_engine_s_input_output_and_end(phone: FakePhone) -> None:
    """Of any length, with what a shell would take apart, in order, and each once."""
    lines = [b"{'$HOME' \\n %s \"`!`\"}", b"{%s}" % (b"x" * (2 * _SHORT_BYTES)), b"{}"]
    process = start(phone, "echo words >&2; sleep 0.2; echo {hello}; cat; echo {$A}; exit 7")
    out, err = process.communicate(b"".join(line + b"\n" for line in lines), timeout=120)
    assert out.splitlines() == [b"{hello}", *lines, b"{b}"]
    assert err.splitlines() == [b"words", b"END"]
    assert process.returncode == 7
    assert not phone.path(f"{FOLDER}/exchange").exists()


def test_an_engine_ends_with_its_relay(phone: FakePhone) -> None:
    """Nothing of it stays on the device when the connection ends."""
    process = start(phone, "echo {}; exec cat")
    assert process.stdout is not None
    assert process.stdout.readline() == b"{}\n"
    process.terminate()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1 and b"END" not in err, "the connection broke"
    until(lambda: not phone.path(f"{FOLDER}/exchange").exists())
