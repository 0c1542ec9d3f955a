"""A folder that stands in for a phone or a board, for `fake_adb.py` and `fake_hdc.py`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from runtime.engine_client import phone_shell
from runtime.engine_client.adb import SERIAL_VARIABLE

FAKES = {tool: Path(__file__).with_name(f"fake_{tool}.py") for tool in ("adb", "hdc")}
SERIAL = "ABC"
READY = {"adb": "device", "hdc": "Connected"}
MACHINES = {"arm64-v8a": "aarch64", "armeabi-v7a": "armv7l"}  # by uname
# Commands of a phone's shell that this machine lacks or that behave differently here.
PROGRAMS = {
    "getprop": 'echo "$(cat "$FAKE_ADB/getprop.$1" 2>/dev/null)"',
    "am": '[ "$1" = start ] && mkdir -p "$FAKE_ADB/sdcard/Android/data/${3%%/*}/files"; exit 0',
    "param": 'echo "$(cat "$FAKE_ADB/param.$2" 2>/dev/null)"',
    "uname": 'cat "$FAKE_ADB/uname"',
    "df": 'cat "$FAKE_ADB/df"',
    "aa": 'cat "$FAKE_ADB/aa"; [ "$1" != start ] || [ -e "$FAKE_ADB/release" ] || '
    'mkdir -p "$FAKE_ADB/apps/$5/data/storage/el2/base/haps/entry/files"',
}
FORBIDDEN = ("mv", "chmod")  # in the files of an app that a phone shows for debugging
_DF = "Filesystem 1K-blocks Used Available Use% Mounted on\n/dev/fuse 9 5 {} 50% /storage\n"


class FakePhone:
    """The folder that stands in for the phone; its files also tell the fake adb how to fail."""

    def __init__(self, state: Path, tool: str) -> None:
        self.state = state
        for folder in ("sdcard", "data/local/tmp", "proc", "programs"):
            (state / folder).mkdir(parents=True)
        for name, script in PROGRAMS.items():
            self.program(name, script)
        (state / "forbidden").mkdir()
        for name in FORBIDDEN:
            self.program(name, f"echo {name}: Permission denied; exit 1", "forbidden")
        self.tool = tool
        self.devices({SERIAL: READY[tool]})
        self.write("getprop.ro.product.model", "Pixel")
        self.write("param.const.product.model", "Pixel")
        self.write("param.const.ohos.apiversion", "26")
        self.abis("arm64-v8a,armeabi-v7a")
        self.write("getprop.ro.build.version.sdk", "26")
        self.write("proc/meminfo", "MemTotal:        8000000 kB\nMemFree:  1 kB\n")
        done = {
            "adb": "Performing Streamed Install\nSuccess",
            "hdc": "install bundle successfully.",
        }
        self.write("install", done[tool])
        self.write("aa", "start ability successfully.\n")
        self.free(1 << 40)

    def write(self, name: str, text: str) -> None:
        (self.state / name).write_text(text)

    def program(self, name: str, script: str, folder: str = "programs") -> None:
        path = self.state / folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def abis(self, text: str) -> None:
        self.write("getprop.ro.product.cpu.abilist", text)
        first = text.partition(",")[0]
        self.write("uname", f"{MACHINES.get(first, first)}\n")

    def devices(self, states: Mapping[str, str]) -> None:
        """Lists phones, as the tool lists them."""
        row = {"adb": "{}\t{}", "hdc": "{}\t\tUSB\t{}\tlocalhost\thdc"}[self.tool]
        self.write("devices", "".join(f"{row.format(*pair)}\n" for pair in states.items()))

    def free(self, nbytes: int) -> None:
        self.write("df", _DF.format(nbytes // 1024))

    def adb_says(self, version: str) -> None:
        self.write("version", version)

    def cut(self, *moments: tuple[str, str, int]) -> None:
        """Makes the phone go away: in which call, what still happens of it, for how many calls."""
        self.write("cuts", "".join(f"{call}\t{what}\t{n}\n" for call, what, n in moments))

    def path(self, target: str) -> Path:
        return self.state / target.lstrip("/")

    def calls(self) -> list[str]:
        """Returns the commands that adb received since the last call."""
        log = self.state / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines


def fake_phone(folder: Path, monkeypatch: pytest.MonkeyPatch, tool: str = "adb") -> FakePhone:
    """Makes a phone in a folder and puts its adb or hdc first on the PATH."""
    state, programs = folder / "phone", folder / "bin"
    state.mkdir()
    programs.mkdir()
    program = programs / tool
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E {FAKES[tool]} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    monkeypatch.setenv("FAKE_ADB", str(state))
    monkeypatch.delenv(SERIAL_VARIABLE, raising=False)
    for pause in ("_POLL_SECONDS", "_SETTLE_SECONDS"):
        monkeypatch.setattr(phone_shell, pause, 0.01)
    return FakePhone(state, tool)
