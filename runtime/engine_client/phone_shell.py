"""A phone's shell and files, whichever tool reaches it.

What has arrived of a file is kept, so that a copy that broke goes on. When the phone goes away, or
the tool's server ends, adb 29 and hdc end a shell with exit code 0 and say nothing. So every script
says when it has ended. One that has not is run again when the phone is back, which all scripts here
allow.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from quantize.errors import ToolkitError

QUICK_SECONDS = 60.0  # for a command, and for a copy to move on
SLOWEST_BYTES_S = 250_000  # an old phone on a bad cable
_BLOCK = 1 << 20  # bytes
TRIES = 3  # of a command, or of a copy that does not move on, while the phone is there
AWAY_SECONDS = 120.0  # for a phone that went away to come back
_POLL_SECONDS = 1.0  # between two questions whether it is back
_SETTLE_SECONDS = 0.5  # in which what was on its way still arrives
END = "minicpmv-end"  # what a script says last, with its exit code
FULL = "no space left"

OnBytes = Callable[[int], None]  # bytes that have arrived


class PhoneError(ToolkitError):
    """A phone cannot be reached, or refused a command."""


class PhoneAwayError(PhoneError):
    """A phone went away, and did not come back in time."""


@dataclass(frozen=True, kw_only=True)
class PhoneInfo:
    """What a phone is."""

    model: str
    abis: tuple[str, ...]  # its own first, then those that it imitates
    api: int
    memory_bytes: int


@dataclass(frozen=True)
class ToolResult:
    """How a command of adb or hdc ended."""

    code: int
    out: str
    err: str

    @property
    def reason(self) -> str:
        """The line that says why it failed."""
        lines = (self.err.strip() or self.out.strip()).splitlines() or ["no message"]
        return lines[-1].strip()


@dataclass(frozen=True, kw_only=True)
class EngineWork:
    """How an engine is to be started on a phone."""

    folder: str  # in which it runs
    exchange: str  # a folder to make in it, and to clear away when the engine has ended
    program: str  # quoted for a shell, like the others
    variables: str  # before the program
    end_mark: str


class PhoneShell(ABC):
    """One phone's shell and files."""

    engine: ClassVar[str]  # the value of `--engine` for it
    listing: ClassVar[str]  # the command with which a user lists phones

    def __init__(self, serial: str, *, away_seconds: float | None = None) -> None:
        """Args: serial: its number. away_seconds: to wait if it goes away; None: AWAY_SECONDS."""
        self.serial = serial
        self._away_seconds = AWAY_SECONDS if away_seconds is None else away_seconds

    @abstractmethod
    def command(self, *arguments: str) -> list[str]:
        """Returns a command line of the tool."""

    @abstractmethod
    def engine_command(self, work: EngineWork) -> list[str]:
        """Returns the command line that runs an engine on the phone.

        Its input, output and exit code are the engine's. The last line on stderr is
        `work.end_mark`, unless the connection broke.
        """

    @abstractmethod
    def info(self) -> PhoneInfo:
        """Asks the phone what it is.

        Raises:
            PhoneError: it does not say.
        """

    @abstractmethod
    def pull(self, remote: str, local: Path) -> None:
        """Copies a file from the phone.

        Raises:
            PhoneError: it could not be copied.
        """

    @abstractmethod
    def _problem(self) -> str | None:
        """Returns why the phone cannot be used now, None if it can."""

    @abstractmethod
    def _ask(self, what: str, script: str, seconds: float) -> ToolResult:
        """Runs a script on the phone, once. Args: what: names it in messages."""

    @abstractmethod
    def _append(self, local: Path, start: int, remote: str, on_bytes: OnBytes) -> str:
        """Sends a file's rest; returns what went wrong, if anything did."""

    def run(self, what: str, *arguments: str, seconds: float = QUICK_SECONDS) -> ToolResult:
        """Runs a command of the tool, whatever comes of it.

        Args:
            what: names it in messages.
            arguments: of the tool.
            seconds: how long it may take.

        Raises:
            PhoneError: it takes longer.
        """
        try:
            return run_tool(self.command(*arguments), seconds)
        except TimeoutError:
            raise self._too_long(what) from None

    def shell(self, script: str) -> str:
        """Runs a script on the phone and returns what it printed.

        Raises:
            PhoneError: it failed, or takes too long.
        """
        return self._checked(f"`{script:.60}`", self._answer(script))

    def try_shell(self, script: str, *, seconds: float = QUICK_SECONDS) -> str | None:
        """Runs a script that may fail; None if it did.

        Raises:
            PhoneError: it takes longer, or the phone is away.
        """
        said = self._answer(script, seconds)
        return None if said.code else said.out

    def await_return(self, reason: str) -> None:
        """Waits for a phone that went away; returns at once where it is there.

        Args:
            reason: what the tool said.

        Raises:
            PhoneAwayError: it does not come back in time.
        """
        deadline = time.monotonic() + self._away_seconds
        while True:
            problem = self._problem()
            if problem is None:
                return
            reason = problem
            if time.monotonic() >= deadline:
                raise PhoneAwayError(
                    f"{self.serial}: went away, and did not come back within "
                    f"{self._away_seconds:.0f} s: {reason}; look at the cable and the phone's "
                    f"screen, see whether `{self.listing}` lists it, and run the same command "
                    "again: it goes on with what has arrived"
                )
            time.sleep(_POLL_SECONDS)

    def _answer(self, script: str, seconds: float = QUICK_SECONDS) -> ToolResult:
        """Runs a script to its end, again if the phone goes away meanwhile.

        Raises:
            PhoneError: it takes longer, or the phone does not come back.
        """
        what, ending = f"`{script:.60}`", f"({script}); echo {END} $?"
        said = ToolResult(1, "", "")
        for _ in range(TRIES):
            said = self._ask(what, ending, seconds)
            end = re.search(rf"{END} (\d+)\s*$", said.out)
            if end is not None:
                return ToolResult(int(end[1]), said.out[: end.start()], said.err)
            self.await_return(said.reason)
        return ToolResult(said.code or 1, said.out, said.err or "the connection broke")

    def free_bytes(self, folder: str) -> int:
        """Returns how much may be written below a folder."""
        lines = self.shell(f"df -k {shlex.quote(folder)}").splitlines()
        fields = lines[-1].split() if lines else []
        if len(fields) < 4 or not fields[3].isdecimal():
            raise PhoneError(f"{self.serial}: does not say what space is free below {folder}")
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
        seconds = QUICK_SECONDS + size / SLOWEST_BYTES_S
        said = self.try_shell(f"sha256sum {shlex.quote(path)}", seconds=seconds)
        match = re.match(r"([0-9a-f]{64})\b", said or "")
        return match[1] if match else None

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
            PhoneError: the phone went away, ran full, or got something else.
        """
        total = local.stat().st_size
        sha256 = sha256 or file_hash(local)
        partial = _partial(remote, sha256)
        quoted = shlex.quote(partial)
        self._send(local, partial, on_bytes)
        found = self.sha256(partial, total)
        if found is not None and found != sha256:
            self.shell(f"rm -f {quoted}")
            if file_hash(local) != sha256:
                raise altered(local, sha256)
            raise self._damaged(local)
        whole = shlex.quote(remote)
        self.shell(f"if [ -e {quoted} ]; then chmod 644 {quoted} && mv {quoted} {whole}; fi")

    def _send(self, local: Path, partial: str, on_bytes: OnBytes) -> None:
        """Sends what is missing of a file, as long as every try brings some of it.

        Raises:
            PhoneError: the phone ran full, takes nothing, or does not come back.
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
            if FULL in problem.lower():
                self.try_shell(f"rm -f {shlex.quote(partial)}")
                raise self._full(local, problem)
            idle = 0 if done > before else idle + 1
            if idle == TRIES:
                raise self._stuck(local, done, problem)
            done = self._settled(partial, done)

    def _settled(self, path: str, size: int) -> int:
        """Returns a file's size once nothing arrives any more: the end of a cut copy may."""
        while True:
            time.sleep(_SETTLE_SECONDS)
            before, size = size, self.size(path) or 0
            if size == before:
                return size

    def _checked(self, what: str, said: ToolResult) -> str:
        if said.code:
            raise PhoneError(f"{self.serial}: {what} failed: {said.reason}")
        return said.out

    def _damaged(self, local: Path) -> PhoneError:
        return PhoneError(
            f"{self.serial}: push {local.name} failed: it arrived damaged and was removed; try "
            "another cable"
        )

    def _full(self, local: Path, problem: str) -> PhoneError:
        return PhoneError(
            f"{self.serial}: push {local.name} failed: {problem}; the phone is full, and what had "
            "arrived was removed: free some space, and try again"
        )

    def _stuck(self, local: Path, done: int, problem: str) -> PhoneError:
        done_mib, total_mib = (count / 2**20 for count in (done, local.stat().st_size))
        return PhoneError(
            f"{self.serial}: push {local.name} failed: {done_mib:,.0f} of {total_mib:,.0f} MiB are "
            f"on the phone: {problem}; the same command goes on from there"
        )

    def _too_long(self, what: str) -> PhoneError:
        return PhoneError(f"{self.serial}: {what} took too long; is the phone still connected?")


def choose(
    serial: str | None,
    states: Mapping[str, str],
    *,
    ready: str,
    advice: Callable[[str], str],
    listing: str,
    option: str,
    help_connect: str,
) -> str:
    """Returns the serial number of the phone to use, which is ready.

    Args:
        serial: that the user named; None: the only phone.
        states: of the connected phones, by their serial numbers.
        ready: the state of a phone that can be used.
        advice: says what to try in another state.
        listing: the command that lists them.
        option: with which a user names one.
        help_connect: how to connect one.

    Raises:
        PhoneError: there is none, or several, or not this one, or it is not ready.
    """
    if serial is None:
        if not states:
            raise PhoneError(
                f"no phone is connected; {help_connect}, then see whether `{listing}` lists it"
            )
        if len(states) > 1:
            raise PhoneError(
                f"{len(states)} phones are connected: {', '.join(states)}; choose one with {option}"
            )
        (serial,) = states
    if serial not in states:
        raise PhoneError(
            f"phone {serial} is not connected; `{listing}` lists {', '.join(states) or 'none'}"
        )
    state = states[serial]
    if state != ready:
        raise PhoneError(f"phone {serial} is not ready ({state}): {advice(state)}")
    return serial


def memory_bytes(lines: Sequence[str]) -> int | None:
    """Reads the size of the memory from lines of /proc/meminfo; None if they do not say."""
    found = next((m for line in lines if (m := re.match(r"MemTotal:\s+(\d+) kB", line))), None)
    return None if found is None else int(found[1]) * 1024


def altered(local: Path, sha256: str) -> PhoneError:
    """Returns the error for a file that is not what the manifest says."""
    return PhoneError(
        f"{local}: altered: its SHA-256 is not {sha256[:12]}…, as the manifest says; convert the "
        "checkpoint again"
    )


def short_hash(sha256: str) -> str:
    """Returns what tells files apart in names on a phone; a manifest's hash is from outside."""
    return re.sub("[^0-9a-z]", "", sha256)[:8]


def _partial(remote: str, sha256: str) -> str:
    """Returns under which name a file arrives: its own, so that only its own parts are kept."""
    return f"{remote}.part-{short_hash(sha256)}"


def file_hash(path: Path) -> str:
    """Returns a file's SHA-256."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def run_tool(command: list[str], seconds: float) -> ToolResult:
    """Runs a program.

    Raises:
        TimeoutError: it takes longer.
    """
    process = start_tool(command, subprocess.DEVNULL)
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise TimeoutError from None
    finally:
        end_tool(process)
    return ToolResult(
        process.returncode, out.decode(errors="replace"), err.decode(errors="replace")
    )


def start_tool(command: list[str], stdin: int) -> subprocess.Popen[bytes]:
    """Starts a program whose output can be read."""
    pipe = subprocess.PIPE
    try:
        # In a session of its own: an interrupt is for whoever waits here, not for the tool.
        return subprocess.Popen(
            command, stdin=stdin, stdout=pipe, stderr=pipe, start_new_session=True
        )
    except OSError as error:
        raise PhoneError(f"{command[0]}: does not start: {error.strerror or error}") from error


def end_tool(process: subprocess.Popen[bytes]) -> None:
    """Ends a program that `start_tool` started."""
    process.kill()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()
    process.wait()
