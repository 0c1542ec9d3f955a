"""A folder that stands in for a phone, for `fake_adb.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from runtime.engine_client import adb as adb_client
from runtime.engine_client.adb import SERIAL_VARIABLE

FAKE_ADB = Path(__file__).with_name("fake_adb.py")
SERIAL = "ABC"
# Commands of a phone's shell that this machine lacks or that behave differently here.
PROGRAMS = {
    "getprop": 'echo "$(cat "$FAKE_ADB/getprop.$1" 2>/dev/null)"',
    "am": '[ "$1" = start ] && mkdir -p "$FAKE_ADB/sdcard/Android/data/${3%%/*}/files"; exit 0',
    "df": 'cat "$FAKE_ADB/df"',
}
_DF = "Filesystem 1K-blocks Used Available Use% Mounted on\n/dev/fuse 9 5 {} 50% /storage\n"


class FakePhone:
    """The folder that stands in for the phone; its files also tell the fake adb how to fail."""

    def __init__(self, state: Path) -> None:
        self.state = state
        for folder in ("sdcard", "data/local/tmp", "proc", "programs"):
            (state / folder).mkdir(parents=True)
        for name, script in PROGRAMS.items():
            self.program(name, script)
        self.write("devices", f"{SERIAL}\tdevice\n")
        self.write("getprop.ro.product.model", "Pixel")
        self.abis("arm64-v8a,armeabi-v7a")
        self.write("getprop.ro.build.version.sdk", "26")
        self.write("proc/meminfo", "MemTotal:        8000000 kB\nMemFree:  1 kB\n")
        self.write("install", "Performing Streamed Install\nSuccess")
        self.free(1 << 40)

    def write(self, name: str, text: str) -> None:
        (self.state / name).write_text(text)

    def program(self, name: str, script: str) -> None:
        path = self.state / "programs" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def abis(self, text: str) -> None:
        self.write("getprop.ro.product.cpu.abilist", text)

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


def fake_phone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> FakePhone:
    """Makes a phone in a folder and puts its adb first on the PATH."""
    state, programs = folder / "phone", folder / "bin"
    state.mkdir()
    programs.mkdir()
    adb = programs / "adb"
    adb.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E {FAKE_ADB} "$@"\n')
    adb.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    monkeypatch.setenv("FAKE_ADB", str(state))
    monkeypatch.delenv(SERIAL_VARIABLE, raising=False)
    for pause in ("_POLL_SECONDS", "_SETTLE_SECONDS"):
        monkeypatch.setattr(adb_client, pause, 0.01)
    return FakePhone(state)
