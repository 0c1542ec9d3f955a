"""Commands to a phone through `adb`, the Android Debug Bridge."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from quantize.errors import ToolkitError

PROGRAM = "adb"
SERIAL_VARIABLE = "ANDROID_SERIAL"
_QUICK_SECONDS = 60.0
_SLOWEST_BYTES_S = 250_000  # an old phone on a bad cable
_LOOK_SECONDS = 1.0  # between two looks at how much of a file has arrived
_STATES = {
    "unauthorized": "allow USB debugging on its screen",
    "offline": "unplug it and plug it in again, or try `adb reconnect`",
    "no permissions": "this user may not use its USB port; see `adb devices -l`",
}


class AdbError(ToolkitError):
    """A phone cannot be reached, or refused a command."""


class Adb:
    """One phone's shell and files."""

    def __init__(self, serial: str) -> None:
        self.serial = serial

    def command(self, *arguments: str) -> list[str]:
        """Returns a command line of adb."""
        return [PROGRAM, "-s", self.serial, *arguments]

    def shell_command(self, script: str) -> list[str]:
        """Returns the command line that runs a script on the phone, without a terminal."""
        return self.command("shell", "-T", script)

    def shell(self, script: str) -> str:
        """Runs a script on the phone and returns what it printed.

        Raises:
            AdbError: it failed, or takes too long.
        """
        return self._run(self.shell_command(script), f"`{script:.60}`")

    def pull(self, remote: str, local: Path) -> None:
        """Copies a file from the phone.

        Raises:
            AdbError: it could not be copied.
        """
        self._run(self.command("pull", remote, str(local)), f"pull {remote}")

    def push(self, local: Path, remote: str, on_bytes: Callable[[int], None] | None = None) -> None:
        """Copies a file to the phone.

        Args:
            local: what to copy.
            remote: its path there.
            on_bytes: hears now and then how many bytes have arrived.

        Raises:
            AdbError: it could not be copied.
        """
        seconds = _QUICK_SECONDS + local.stat().st_size / _SLOWEST_BYTES_S
        look = None if on_bytes is None else lambda: on_bytes(self._size(remote))
        self._run(self.command("push", str(local), remote), f"push {local.name}", seconds, look)

    def _size(self, remote: str) -> int:
        """Returns a file's size; 0 where there is none yet."""
        text = self.shell(f"stat -c %s {shlex.quote(remote)} 2>/dev/null || echo 0").strip()
        return int(text) if text.isdecimal() else 0

    def _run(
        self,
        command: list[str],
        what: str,
        seconds: float = _QUICK_SECONDS,
        look: Callable[[], None] | None = None,
    ) -> str:
        process = _start(command)
        try:
            out, err = _finish(process, seconds, look)
        except TimeoutError:
            raise AdbError(
                f"{self.serial}: {what} took too long; is the phone still connected?"
            ) from None
        finally:
            process.kill()
            process.communicate()
        if process.returncode:
            lines = (err.strip() or out.strip()).splitlines() or ["no message"]
            raise AdbError(f"{self.serial}: {what} failed: {lines[-1]}")
        return out


def connect(serial: str | None = None) -> Adb:
    """Finds the phone to use.

    Args:
        serial: its serial number; by default that of $ANDROID_SERIAL, or the only phone's.

    Raises:
        AdbError: adb is not installed; the phone is not connected, or not ready; there are several.
    """
    if shutil.which(PROGRAM) is None:
        raise AdbError(
            f"{PROGRAM} is not installed; Debian has it in the package adb, Android in its "
            "platform tools"
        )
    states = _devices()
    serial = serial or os.environ.get(SERIAL_VARIABLE) or None
    if serial is None:
        if not states:
            raise AdbError(
                "no phone is connected; switch on USB debugging in its developer options, plug it "
                "in, and see whether `adb devices` lists it"
            )
        if len(states) > 1:
            raise AdbError(
                f"{len(states)} phones are connected: {', '.join(states)}; choose one with "
                f"--serial or {SERIAL_VARIABLE}"
            )
        (serial,) = states
    if serial not in states:
        raise AdbError(
            f"phone {serial} is not connected; `adb devices` lists {', '.join(states) or 'none'}"
        )
    if states[serial] != "device":
        advice = next((a for s, a in _STATES.items() if states[serial].startswith(s)), "try again")
        raise AdbError(f"phone {serial} is not ready ({states[serial]}): {advice}")
    return Adb(serial)


def _devices() -> dict[str, str]:
    """Returns the states of the connected phones by their serial numbers."""
    process = _start([PROGRAM, "devices"])
    try:
        out, err = _finish(process, _QUICK_SECONDS)
    except TimeoutError:
        raise AdbError("`adb devices` does not answer; try `adb kill-server`") from None
    finally:
        process.kill()
        process.communicate()
    if process.returncode:
        raise AdbError(f"`adb devices` failed: {(err.strip() or out.strip())[-200:]}")
    _, _, listed = out.partition("List of devices attached")
    pairs = (line.split("\t", 1) for line in listed.splitlines() if "\t" in line)
    return {serial.strip(): state.strip() for serial, state in pairs}


def _start(command: list[str]) -> subprocess.Popen[str]:
    try:
        # In a session of its own: an interrupt is for whoever waits here, not for adb.
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise AdbError(f"{command[0]}: does not start: {error.strerror or error}") from error


def _finish(
    process: subprocess.Popen[str], seconds: float, look: Callable[[], None] | None = None
) -> tuple[str, str]:
    """Waits for a process; returns what it printed, and its errors.

    Args:
        process: one of `_start`.
        seconds: how long it may take.
        look: called now and then meanwhile.

    Raises:
        TimeoutError: it takes longer.
    """
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        try:
            return process.communicate(timeout=left if look is None else min(left, _LOOK_SECONDS))
        except subprocess.TimeoutExpired:
            if look is not None:
                look()
    raise TimeoutError
