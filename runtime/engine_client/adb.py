"""A phone through `adb`, the Android Debug Bridge: its shell, its files, what it is.

The only client of adb. Copies go through the phone's shell, so that one that broke goes on. When
the phone goes away, or adb's server ends, adb 29 ends a shell with exit code 0 and says nothing. So
every script says when it has ended. One that has not is run again when the phone is back, which all
scripts here allow.
"""

from __future__ import annotations

import hashlib
import os
import re
import select
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from quantize.errors import ToolkitError

PROGRAM = "adb"
SERIAL_VARIABLE = "ANDROID_SERIAL"
READY = "device"  # the state of a phone that can be used
QUICK_SECONDS = 60.0  # for a command, and for a copy to move on
_SLOWEST_BYTES_S = 250_000  # an old phone on a bad cable
_BLOCK = 1 << 20  # bytes
_TRIES = 3  # of a command, or of a copy that does not move on, while the phone is there
AWAY_SECONDS = 120.0  # for a phone that went away to come back
_POLL_SECONDS = 1.0  # between two questions whether it is back
_SETTLE_SECONDS = 0.5  # in which what was on its way still arrives
_END = "minicpmv-end"  # what a script says last, with its exit code
_FULL = "No space left"
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

OnBytes = Callable[[int], None]  # bytes that have arrived


class AdbError(ToolkitError):
    """A phone cannot be reached, or refused a command."""


class PhoneAwayError(AdbError):
    """A phone went away, and did not come back in time."""


@dataclass(frozen=True, kw_only=True)
class PhoneInfo:
    """What a phone is."""

    model: str
    abis: tuple[str, ...]  # its own first, then those that it imitates
    api: int
    memory_bytes: int


@dataclass(frozen=True)
class AdbResult:
    """How a command of adb ended."""

    code: int
    out: str
    err: str

    @property
    def reason(self) -> str:
        """The line that says why it failed."""
        lines = (self.err.strip() or self.out.strip()).splitlines() or ["no message"]
        return lines[-1].strip()


class Adb:
    """One phone's shell and files."""

    def __init__(self, serial: str, *, away_seconds: float | None = None) -> None:
        """Args: serial: its number. away_seconds: to wait if it goes away; None: AWAY_SECONDS."""
        self.serial = serial
        self._away_seconds = AWAY_SECONDS if away_seconds is None else away_seconds

    def command(self, *arguments: str) -> list[str]:
        """Returns a command line of adb."""
        return [PROGRAM, "-s", self.serial, *arguments]

    def shell_command(self, script: str) -> list[str]:
        """Returns the command line that runs a script on the phone, without a terminal."""
        return self.command("shell", "-T", script)

    def run(self, what: str, *arguments: str, seconds: float = QUICK_SECONDS) -> AdbResult:
        """Runs a command of adb, whatever comes of it.

        Args:
            what: names it in messages.
            arguments: of adb.
            seconds: how long it may take.

        Raises:
            AdbError: it takes longer.
        """
        try:
            return _run(self.command(*arguments), seconds)
        except TimeoutError:
            raise self._too_long(what) from None

    def shell(self, script: str) -> str:
        """Runs a script on the phone and returns what it printed.

        Raises:
            AdbError: it failed, or takes too long.
        """
        return self._checked(f"`{script:.60}`", self._answer(script))

    def try_shell(self, script: str, *, seconds: float = QUICK_SECONDS) -> str | None:
        """Runs a script that may fail; None if it did.

        Raises:
            AdbError: it takes longer, or the phone is away.
        """
        said = self._answer(script, seconds)
        return None if said.code else said.out

    def await_return(self, reason: str) -> None:
        """Waits for a phone that went away; returns at once where it is there.

        Args:
            reason: what adb said.

        Raises:
            PhoneAwayError: it does not come back in time.
        """
        deadline = time.monotonic() + self._away_seconds
        while True:
            try:
                said = _run(self.command("get-state"), QUICK_SECONDS)
            except TimeoutError:
                said = AdbResult(1, "", "`adb get-state` does not answer")
            if said.code == 0 and said.out.strip() == READY:
                return
            reason = said.reason if said.code else f"its state is {said.out.strip()}"
            if time.monotonic() >= deadline:
                raise PhoneAwayError(
                    f"{self.serial}: went away, and did not come back within "
                    f"{self._away_seconds:.0f} s: {reason}; look at the cable and the phone's "
                    "screen, see whether `adb devices` lists it, and run the same command again: "
                    "it goes on with what has arrived"
                )
            time.sleep(_POLL_SECONDS)

    def _answer(self, script: str, seconds: float = QUICK_SECONDS) -> AdbResult:
        """Runs a script to its end, again if the phone goes away meanwhile.

        Raises:
            AdbError: it takes longer, or the phone does not come back.
        """
        what, ending = f"`{script:.60}`", f"({script}); echo {_END} $?"
        said = AdbResult(1, "", "")
        for _ in range(_TRIES):
            said = self.run(what, "shell", "-T", ending, seconds=seconds)
            end = re.search(rf"{_END} (\d+)\s*$", said.out)
            if end is not None:
                return AdbResult(int(end[1]), said.out[: end.start()], said.err)
            self.await_return(said.reason)
        return AdbResult(said.code or 1, said.out, said.err or "the connection broke")

    def info(self) -> PhoneInfo:
        """Asks the phone what it is.

        Raises:
            AdbError: it does not say.
        """
        names = ("ro.product.model", "ro.product.cpu.abilist", "ro.build.version.sdk")
        script = "".join(f"getprop {name}; " for name in names) + "cat /proc/meminfo"
        lines = [line.strip() for line in self.shell(script).splitlines()]
        model, abis, api, *memory = [*lines, "", "", ""]
        total = next((m for line in memory if (m := re.match(r"MemTotal:\s+(\d+) kB", line))), None)
        if not api.isdecimal() or total is None or not abis:
            raise AdbError(f"{self.serial}: does not say which Android and processor it has")
        return PhoneInfo(
            model=model or self.serial,
            abis=tuple(abis.split(",")),
            api=int(api),
            memory_bytes=int(total[1]) * 1024,
        )

    def free_bytes(self, folder: str) -> int:
        """Returns how much may be written below a folder."""
        lines = self.shell(f"df -k {shlex.quote(folder)}").splitlines()
        fields = lines[-1].split() if lines else []
        if len(fields) < 4 or not fields[3].isdecimal():
            raise AdbError(f"{self.serial}: does not say what space is free below {folder}")
        return int(fields[3]) * 1024

    def can_write(self, folder: str) -> bool:
        """Makes a folder if need be; says whether files can be written into it."""
        quoted = shlex.quote(folder)
        script = f"mkdir -p {quoted} && touch {quoted}/.try && rm {quoted}/.try"
        return self.try_shell(script) is not None

    def size(self, path: str) -> int | None:
        """Returns a file's size, None if there is none."""
        text = (self.try_shell(f"stat -c %s {shlex.quote(path)}") or "").strip()
        return int(text) if text.isdecimal() else None

    def sha256(self, path: str, size: int) -> str | None:
        """Returns the hash of a file of that size, None if the phone has no program for that."""
        seconds = QUICK_SECONDS + size / _SLOWEST_BYTES_S
        said = self.try_shell(f"sha256sum {shlex.quote(path)}", seconds=seconds)
        match = re.match(r"([0-9a-f]{64})\b", said or "")
        return match[1] if match else None

    def pull(self, remote: str, local: Path) -> None:
        """Copies a file from the phone.

        Raises:
            AdbError: it could not be copied.
        """
        what = f"pull {remote}"
        self._checked(what, self.run(what, "pull", remote, str(local)))

    def clear(self, remote: str, sha256: str) -> None:
        """Removes a file, and what arrived of others for its place; keeps what did of this one."""
        quoted, mine = shlex.quote(remote), shlex.quote(_partial(remote, sha256))
        self.shell(
            f'rm -f {quoted}; for part in {quoted}.part-*; do [ "$part" = {mine} ] || '
            'rm -f "$part"; done'
        )

    def arrived(self, remote: str, sha256: str) -> int:
        """Returns how many bytes of a file an earlier `push` that broke has brought."""
        return self.size(_partial(remote, sha256)) or 0

    def push(
        self,
        local: Path,
        remote: str,
        on_bytes: OnBytes = lambda count: None,
        *,
        sha256: str | None = None,
    ) -> None:
        """Copies a file to the phone; what an earlier try brought is kept.

        Args:
            local: what to copy.
            remote: its path there; appears when it is whole.
            on_bytes: called with the number of bytes that have arrived.
            sha256: of the file, where it is known.

        Raises:
            AdbError: the phone went away, ran full, or got something else.
        """
        total = local.stat().st_size
        sha256 = sha256 or _hash(local)
        partial = _partial(remote, sha256)
        quoted = shlex.quote(partial)
        self._send(local, partial, on_bytes)
        found = self.sha256(partial, total)
        if found is not None and found != sha256:
            self.shell(f"rm -f {quoted}")
            if _hash(local) != sha256:
                raise AdbError(
                    f"{local}: altered: its SHA-256 is not {sha256[:12]}…, as the manifest says; "
                    "convert the checkpoint again"
                )
            raise AdbError(
                f"{self.serial}: push {local.name} failed: it arrived damaged and was removed; try "
                "another cable"
            )
        whole = shlex.quote(remote)
        self.shell(f"if [ -e {quoted} ]; then chmod 644 {quoted} && mv {quoted} {whole}; fi")

    def _send(self, local: Path, partial: str, on_bytes: OnBytes) -> None:
        """Sends what is missing of a file, as long as every try brings some of it.

        Raises:
            AdbError: the phone ran full, takes nothing, or does not come back.
        """
        total, idle = local.stat().st_size, 0
        done = self.size(partial) or 0
        while True:
            if done > total:  # not a part of it
                self.shell(f"rm -f {shlex.quote(partial)}")
                done = 0
            problem = self._append(local, done, partial, on_bytes)
            before, done = done, self.size(partial) or 0
            if done == total:
                return
            if _FULL in problem:
                self.try_shell(f"rm -f {shlex.quote(partial)}")
                raise AdbError(
                    f"{self.serial}: push {local.name} failed: {problem}; the phone is full, and "
                    "what had arrived was removed: free some space, and try again"
                )
            idle = 0 if done > before else idle + 1
            if idle == _TRIES:
                raise AdbError(
                    f"{self.serial}: push {local.name} failed: {done / 2**20:,.0f} of "
                    f"{total / 2**20:,.0f} MiB are on the phone: {problem}; the same command goes "
                    "on from there"
                )
            done = self._settled(partial, done)

    def _settled(self, path: str, size: int) -> int:
        """Returns a file's size once nothing arrives any more: the end of a cut copy may."""
        while True:
            time.sleep(_SETTLE_SECONDS)
            before, size = size, self.size(path) or 0
            if size == before:
                return size

    def _append(self, local: Path, start: int, remote: str, on_bytes: OnBytes) -> str:
        """Sends a file's rest; returns what went wrong, if anything did."""
        process = _start(self.shell_command(f"cat >> {shlex.quote(remote)}"), subprocess.PIPE)
        assert process.stdin is not None
        try:
            with local.open("rb") as file:
                file.seek(start)
                _feed(process.stdin, file, start, on_bytes)
            _, err = process.communicate(timeout=QUICK_SECONDS)
        except (TimeoutError, subprocess.TimeoutExpired):
            return "the phone takes nothing any more"
        finally:
            _end(process)
        lines = [line for line in _text(err).splitlines() if line.strip()]
        return lines[0].strip() if lines else "the connection broke"

    def _checked(self, what: str, said: AdbResult) -> str:
        if said.code:
            raise AdbError(f"{self.serial}: {what} failed: {said.reason}")
        return said.out

    def _too_long(self, what: str) -> AdbError:
        return AdbError(f"{self.serial}: {what} took too long; is the phone still connected?")


def connect(serial: str | None = None) -> Adb:
    """Finds the phone to use.

    Args:
        serial: its serial number; by default that of $ANDROID_SERIAL, or the only phone's.

    Raises:
        AdbError: adb is not installed; the phone is not connected, or not ready; there are several.
    """
    states = devices()
    serial = serial or os.environ.get(SERIAL_VARIABLE) or None
    if serial is None:
        if not states:
            raise AdbError(
                "no phone is connected; plug one in and allow USB debugging in its developer "
                "options (seven taps on the build number show them), then see whether "
                "`adb devices` lists it"
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
    if states[serial] != READY:
        raise AdbError(f"phone {serial} is not ready ({states[serial]}): {advice(states[serial])}")
    return Adb(serial)


def devices() -> dict[str, str]:
    """Returns the states of the connected phones by their serial numbers.

    Raises:
        AdbError: adb is not installed, or its server does not work.
    """
    if shutil.which(PROGRAM) is None:
        raise AdbError(
            f"{PROGRAM} is not installed; Debian has it in the package adb: sudo apt-get install "
            "adb; elsewhere it is in Android's platform tools"
        )
    try:
        said = _run([PROGRAM, "devices"], QUICK_SECONDS)
    except TimeoutError:
        raise AdbError("`adb devices` does not answer; try `adb kill-server`") from None
    if said.code:
        raise AdbError(f"`adb devices` failed: {said.reason}; try `adb kill-server`")
    _, _, listed = said.out.partition("List of devices attached")
    pairs = (line.split("\t", 1) for line in listed.splitlines() if "\t" in line)
    return {serial.strip(): state.split(";")[0].strip() for serial, state in pairs}


def advice(state: str) -> str:
    """Says what to do with a phone that is in a state other than `READY`."""
    return next((a for start, a in _STATES.items() if state.startswith(start)), "try again")


def _partial(remote: str, sha256: str) -> str:
    """Returns under which name a file arrives: its own, so that only its own parts are kept."""
    return f"{remote}.part-{re.sub('[^0-9a-z]', '', sha256)[:8]}"  # a manifest's: from outside


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


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


def _run(command: list[str], seconds: float) -> AdbResult:
    """Runs a program.

    Raises:
        TimeoutError: it takes longer.
    """
    process = _start(command, subprocess.DEVNULL)
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise TimeoutError from None
    finally:
        _end(process)
    return AdbResult(process.returncode, _text(out), _text(err))


def _start(command: list[str], stdin: int) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    try:
        # In a session of its own: an interrupt is for whoever waits here, not for adb.
        return subprocess.Popen(
            command, stdin=stdin, stdout=pipe, stderr=pipe, start_new_session=True
        )
    except OSError as error:
        raise AdbError(f"{command[0]}: does not start: {error.strerror or error}") from error


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()
    process.wait()


def _text(output: bytes) -> str:
    """Decodes what adb printed, without what it says of its server."""
    lines = output.decode(errors="replace").splitlines(keepends=True)
    return "".join(line for line in lines if not _NOISE.match(line))
