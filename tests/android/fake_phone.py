"""A folder that plays a phone for `fake_adb.py`."""

from __future__ import annotations

from pathlib import Path


class FakePhone:
    """A folder that plays the phone."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.write("devices", "ABC\tdevice\n")
        self.write("getprop.ro.product.model", "Pixel")
        self.write("getprop.ro.product.cpu.abilist", "arm64-v8a,armeabi-v7a")
        self.write("getprop.ro.build.version.sdk", "26")
        self.write("install", "Performing Streamed Install\nSuccess")
        (state / "sdcard").mkdir()
        (state / "data/local/tmp").mkdir(parents=True)

    def write(self, name: str, text: str) -> None:
        (self.state / name).write_text(text)

    def path(self, target: str) -> Path:
        return self.state / target.lstrip("/")
