"""A phone through adb: what it is, installing, and copying that survives a broken cable."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from android.tools import ToolError, program

_BLOCK = 1 << 20  # bytes
_TRIES = 3  # of a copy that breaks
_WAIT_SECONDS = 20  # for a phone that went away
_STATES = {
    "unauthorized": "the phone asks whether it trusts this PC; answer on its screen, and try again",
    "offline": "the phone does not answer; unplug it, plug it in, and try again",
    "no permissions": "this user may not use the USB device; Debian's package "
    "android-sdk-platform-tools-common has the udev rules",
}
_INSTALL = {
    "UPDATE_INCOMPATIBLE": "an app of another key is installed; remove it first: adb uninstall "
    "{package} (its chats go with it)",
    "VERSION_DOWNGRADE": "a newer version is installed; remove it first: adb uninstall {package}",
    "INSUFFICIENT_STORAGE": "the phone has too little free space",
    "USER_RESTRICTED": "the phone does not allow it: in its developer options allow installing "
    "over USB, and answer on its screen",
    "NO_MATCHING_ABIS": "the APK has no engine for this phone's processor",
    "OLDER_SDK": "the phone's Android is too old",
    "VERIFICATION_FAILURE": "the phone refused it; in its developer options switch the "
    "verification of apps over USB off",
}

Progress = Callable[[int, int], None]  # bytes done, bytes in all


class PhoneError(ToolError):
    """There is no phone, or it refused something."""


@dataclass(frozen=True, kw_only=True)
class PhoneInfo:
    """What a phone is."""

    model: str
    abis: tuple[str, ...]
    api: int
    memory_bytes: int


class Adb:
    """One phone."""

    def __init__(self, serial: str | None = None) -> None:
        """Finds adb and the phone.

        Raises:
            ToolError: adb is not installed.
            PhoneError: no phone, several, or one that is not ready.
        """
        self._adb = program("adb")
        self.serial = self._find(serial)

    def info(self) -> PhoneInfo:
        """Asks the phone what it is."""
        properties = ("ro.product.model", "ro.product.cpu.abilist", "ro.build.version.sdk")
        model, abis, api = (self.shell(f"getprop {name}").strip() for name in properties)
        memory = re.search(r"MemTotal:\s+(\d+) kB", self.shell("cat /proc/meminfo"))
        if not api.isdigit() or memory is None:
            raise PhoneError(f"{self.serial}: does not say what Android it has")
        return PhoneInfo(
            model=model,
            abis=tuple(abis.split(",")),
            api=int(api),
            memory_bytes=int(memory[1]) * 1024,
        )

    def free_bytes(self, folder: str) -> int:
        """Returns how much may be written below a folder."""
        lines = self.shell(f"df -k {shlex.quote(folder)}").splitlines()
        fields = lines[-1].split() if lines else []
        if len(fields) < 4 or not fields[3].isdigit():
            raise PhoneError(f"{self.serial}: does not say what space is free below {folder}")
        return int(fields[3]) * 1024

    def install(self, apk: Path, package: str) -> None:
        """Installs an app, over an older version of it.

        Raises:
            PhoneError: the phone refuses; says why, as far as it is known.
        """
        done = self._run(["install", "-r", str(apk)])
        if done.returncode == 0 and "Failure" not in done.stdout:
            return
        said = done.stdout + done.stderr
        failure = re.search(r"INSTALL_(?:FAILED|PARSE_FAILED)_(\w+)", said)
        why = _INSTALL.get(failure[1], "") if failure else ""
        detail = failure[0] if failure else _first_line(said)
        raise PhoneError(f"{apk.name}: not installed: {why.format(package=package)} ({detail})")

    def can_write(self, folder: str) -> bool:
        """Makes a folder if need be; says whether files can be written into it."""
        quoted = shlex.quote(folder)
        command = f"mkdir -p {quoted} && touch {quoted}/.try && rm {quoted}/.try"
        return self._run(["shell", command]).returncode == 0

    def size(self, path: str) -> int | None:
        """Returns a file's size, None if there is none."""
        done = self._run(["shell", f"stat -c %s {shlex.quote(path)}"])
        text = done.stdout.strip()
        return int(text) if done.returncode == 0 and text.isdigit() else None

    def sha256(self, path: str) -> str | None:
        """Returns a file's hash, None if the phone has no program for that."""
        done = self._run(["shell", f"sha256sum {shlex.quote(path)}"])
        match = re.match(r"([0-9a-f]{64})\b", done.stdout)
        return match[1] if done.returncode == 0 and match else None

    def copy(self, source: Path, target: str, sha256: str, progress: Progress) -> None:
        """Copies a file; what an earlier try brought is kept.

        Args:
            source: here.
            target: there; appears when it is whole.
            sha256: of the file.
            progress: hears of bytes.

        Raises:
            PhoneError: the phone went away, ran full, or got something else.
        """
        total = source.stat().st_size
        partial = f"{target}.part-{sha256[:8]}"
        problem = ""
        for _ in range(_TRIES):
            start = self.size(partial) or 0
            if start > total:
                self.shell(f"rm {shlex.quote(partial)}")
                start = 0
            problem = self._append(source, start, partial, progress)
            if self.size(partial) == total:
                break
            self._wait()
        else:
            done = self.size(partial) or 0
            raise PhoneError(
                f"{source.name}: {done / 2**20:,.0f} of {total / 2**20:,.0f} MiB are on the phone: "
                f"{problem}; the same command goes on from there"
            )
        found = self.sha256(partial)
        if found is not None and found != sha256:
            self.shell(f"rm {shlex.quote(partial)}")
            raise PhoneError(f"{source.name}: arrived damaged and was removed; try another cable")
        self.shell(
            f"chmod 644 {shlex.quote(partial)}; mv {shlex.quote(partial)} {shlex.quote(target)}"
        )

    def shell(self, command: str) -> str:
        """Runs a command on the phone and returns what it printed.

        Raises:
            PhoneError: it failed, or the phone went away.
        """
        done = self._run(["shell", command])
        if done.returncode:
            raise PhoneError(
                f"{self.serial}: `{command}` failed: {_first_line(done.stderr + done.stdout)}"
            )
        return done.stdout

    def _append(self, source: Path, start: int, target: str, progress: Progress) -> str:
        """Sends a file's rest; returns what went wrong, if anything did."""
        total = source.stat().st_size
        command = [self._adb, "-s", self.serial, "shell", "-T", f"cat >> {shlex.quote(target)}"]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=False,
        )
        assert process.stdin is not None and process.stderr is not None
        try:
            with source.open("rb") as file, process.stdin as stream:
                file.seek(start)
                done = start
                progress(done, total)
                while block := file.read(_BLOCK):
                    stream.write(block)
                    done += len(block)
                    progress(done, total)
        except BrokenPipeError:
            pass  # what adb says of it is read below
        except BaseException:
            process.kill()
            raise
        finally:
            said = process.stderr.read().decode(errors="replace")
            process.wait()
        return _first_line(said) or "the connection broke"

    def _wait(self) -> None:
        try:
            self._run(["wait-for-device"], timeout=_WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            return  # the next try says that it is gone

    def _find(self, serial: str | None) -> str:
        done = subprocess.run(
            [self._adb, "devices"], capture_output=True, text=True, errors="replace", check=False
        )
        if done.returncode:
            raise PhoneError(f"adb does not run: {_first_line(done.stderr)}")
        rows = [line.split("\t", 1) for line in done.stdout.splitlines() if "\t" in line]
        phones = {row[0]: row[1].split(";")[0].strip() for row in rows}
        if serial is not None and serial not in phones:
            raise PhoneError(f"{serial}: not connected; connected: {', '.join(phones) or 'none'}")
        if not phones:
            raise PhoneError(
                "no phone is connected; plug one in and allow USB debugging in its developer "
                "options (seven taps on the build number show them)"
            )
        if serial is None and len(phones) > 1:
            raise PhoneError(f"several phones are connected: {', '.join(phones)}; choose --device")
        chosen = serial or next(iter(phones))
        state = phones[chosen]
        if state != "device":
            key = next((k for k in _STATES if state.startswith(k)), None)
            raise PhoneError(f"{chosen}: {_STATES[key] if key else state}")
        return chosen

    def _run(
        self, arguments: list[str], *, timeout: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._adb, "-s", self.serial, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=timeout,
            check=False,
        )


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else ""
