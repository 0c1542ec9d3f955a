"""A phone through `adb`, the Android Debug Bridge."""

from __future__ import annotations

import os
import re
import select
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import IO

from runtime.engine_client.options import ADB
from runtime.engine_client.phone_shell import (
    QUICK_SECONDS,
    EngineWork,
    OnBytes,
    PhoneError,
    PhoneInfo,
    PhoneShell,
    ToolResult,
    choose,
    end_tool,
    memory_bytes,
    run_tool,
    start_tool,
)

PROGRAM = "adb"
SERIAL_VARIABLE = "ANDROID_SERIAL"
READY = "device"  # the state of a phone that can be used
_BLOCK = 1 << 20  # bytes
_STATES = {
    "unauthorized": "it asks whether it trusts this PC; answer on its screen",
    "authorizing": "it asks whether it trusts this PC; answer on its screen",
    "offline": "it does not answer; unplug it and plug it in again, or try `adb reconnect`",
    "no permissions": "this user may not use its USB port; Debian's package "
    "android-sdk-platform-tools-common has the rules for that",
    "recovery": "it is in recovery mode; restart it",
    "bootloader": "it is in its boot loader; restart it",
    "sideload": "it waits for a system update; restart it",
}
# What adb prints, on whichever stream, when its server starts or is of another version.
_NOISE = re.compile(r"\* daemon |\* failed to start daemon|adb server (version|is out of date)")


class Adb(PhoneShell):
    """One phone's shell and files."""

    engine, listing = ADB, "adb devices"

    def command(self, *arguments: str) -> list[str]:
        """See `PhoneShell`."""
        return [PROGRAM, "-s", self.serial, *arguments]

    def shell_command(self, script: str) -> list[str]:
        """Returns the command line that runs a script on the phone, without a terminal."""
        return self.command("shell", "-T", script)

    def engine_command(self, work: EngineWork) -> list[str]:
        """See `PhoneShell`."""
        # The phone's shell clears the exchange away, whatever becomes of this process.
        return self.shell_command(
            f"cd {work.folder} && mkdir {work.exchange} && trap 'rm -rf {work.exchange}' EXIT && "
            f"trap 'exit 129' HUP && chmod 755 {work.program} && {work.variables}{work.program}; "
            f"code=$?; echo {work.end_mark} >&2; exit $code"
        )

    def run(self, what: str, *arguments: str, seconds: float = QUICK_SECONDS) -> ToolResult:
        """See `PhoneShell`."""
        return _plain(super().run(what, *arguments, seconds=seconds))

    def info(self) -> PhoneInfo:
        """See `PhoneShell`."""
        names = ("ro.product.model", "ro.product.cpu.abilist", "ro.build.version.sdk")
        script = "".join(f"getprop {name}; " for name in names) + "cat /proc/meminfo"
        lines = [line.strip() for line in self.shell(script).splitlines()]
        model, abis, api, *rest = [*lines, "", "", ""]
        memory = memory_bytes(rest)
        if not api.isdecimal() or memory is None or not abis:
            raise PhoneError(f"{self.serial}: does not say which Android and processor it has")
        return PhoneInfo(
            model=model or self.serial,
            abis=tuple(abis.split(",")),
            api=int(api),
            memory_bytes=memory,
        )

    def pull(self, remote: str, local: Path) -> None:
        """See `PhoneShell`."""
        what = f"pull {remote}"
        self._checked(what, self.run(what, "pull", remote, str(local)))

    def _problem(self) -> str | None:
        try:
            said = _plain(run_tool(self.command("get-state"), QUICK_SECONDS))
        except TimeoutError:
            return "`adb get-state` does not answer"
        if said.code:
            return said.reason
        state = said.out.strip()
        return None if state == READY else f"its state is {state}"

    def _ask(self, what: str, script: str, seconds: float) -> ToolResult:
        return self.run(what, "shell", "-T", script, seconds=seconds)

    def _append(self, local: Path, start: int, remote: str, on_bytes: OnBytes) -> str:
        process = start_tool(self.shell_command(f"cat >> {shlex.quote(remote)}"), subprocess.PIPE)
        assert process.stdin is not None
        try:
            with local.open("rb") as file:
                file.seek(start)
                _feed(process.stdin, file, start, on_bytes)
            _, err = process.communicate(timeout=QUICK_SECONDS)
        except (TimeoutError, subprocess.TimeoutExpired):
            return "the phone takes nothing any more"
        finally:
            end_tool(process)
        lines = [line for line in _text(err.decode(errors="replace")).splitlines() if line.strip()]
        return lines[0].strip() if lines else "the connection broke"


def connect(serial: str | None = None) -> Adb:
    """Finds the phone to use.

    Args:
        serial: its serial number; by default that of $ANDROID_SERIAL, or the only phone's.

    Raises:
        PhoneError: adb is not installed; the phone is not connected, or not ready; there are
            several.
    """
    serial = choose(
        serial or os.environ.get(SERIAL_VARIABLE) or None,
        devices(),
        ready=READY,
        advice=advice,
        listing=Adb.listing,
        option=f"--serial or {SERIAL_VARIABLE}",
        help_connect="plug one in and allow USB debugging in its developer "
        "options (seven taps on the build number show them)",
    )
    return Adb(serial)


def devices() -> dict[str, str]:
    """Returns the states of the connected phones by their serial numbers.

    Raises:
        PhoneError: adb is not installed, or its server does not work.
    """
    if shutil.which(PROGRAM) is None:
        raise PhoneError(
            f"{PROGRAM} is not installed; Debian has it in the package adb: sudo apt-get install "
            "adb; elsewhere it is in Android's platform tools"
        )
    try:
        said = _plain(run_tool([PROGRAM, "devices"], QUICK_SECONDS))
    except TimeoutError:
        raise PhoneError("`adb devices` does not answer; try `adb kill-server`") from None
    if said.code:
        raise PhoneError(f"`adb devices` failed: {said.reason}; try `adb kill-server`")
    _, _, listed = said.out.partition("List of devices attached")
    pairs = (line.split("\t", 1) for line in listed.splitlines() if "\t" in line)
    return {serial.strip(): state.split(";")[0].strip() for serial, state in pairs}


def advice(state: str) -> str:
    """Says what to do with a phone that is in a state other than `READY`."""
    return next((a for start, a in _STATES.items() if state.startswith(start)), "try again")


def _feed(pipe: IO[bytes], file: IO[bytes], done: int, on_bytes: OnBytes) -> None:
    """Writes a file's rest into a pipe; ends early where nobody reads it.

    Raises:
        TimeoutError: the reader takes nothing for long.
    """
    os.set_blocking(pipe.fileno(), False)
    on_bytes(done)
    try:
        while block := file.read(_BLOCK):
            rest = memoryview(block)
            while rest:
                if not select.select([], [pipe], [], QUICK_SECONDS)[1]:
                    raise TimeoutError
                rest = rest[os.write(pipe.fileno(), rest) :]
            done += len(block)
            on_bytes(done)
    except BrokenPipeError:
        pass  # the process has ended; it says why


def _plain(said: ToolResult) -> ToolResult:
    """Returns a result without what adb says of its server."""
    return ToolResult(said.code, _text(said.out), _text(said.err))


def _text(output: str) -> str:
    lines = output.splitlines(keepends=True)
    return "".join(line for line in lines if not _NOISE.match(line))
