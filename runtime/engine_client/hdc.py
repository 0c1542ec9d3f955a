"""An OpenHarmony board or PC through `hdc`, the OpenHarmony Device Connector.

By its sources (openharmony/developtools_hdc @ 8b85a677), and unlike adb:

- it ends with exit code 0 whatever happened, and prints `[Fail]` and a reason on stdout;
- `hdc shell COMMAND` forwards no input; what the command writes on stderr comes on stdout;
- a command of one argument with a space in it reaches the device's shell as it is;
- when the client ends, or the cable is pulled, the device's shell gets SIGTERM.

So a file goes in pieces by `hdc file send`, and an engine's input through a named pipe on the
device (`hdc_relay.py`).
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from hashlib import sha256
from pathlib import Path

from convert.support.scratch import scratch_folder
from runtime.engine_client.options import HDC
from runtime.engine_client.phone_shell import (
    END,
    QUICK_SECONDS,
    SLOWEST_BYTES_S,
    EngineWork,
    OnBytes,
    PhoneError,
    PhoneInfo,
    PhoneShell,
    ToolResult,
    choose,
    memory_bytes,
    run_tool,
)

PROGRAM = "hdc"
READY = "Connected"  # the state of a device that can be used
RELAY = "runtime.engine_client.hdc_relay"
REQUESTS, HOLDER = "requests", "holder"  # in an exchange: the pipe, and who keeps it open
PIECE_BYTES = 32 << 20  # of a file, in one `file send`
_FAIL, _DONE = "[Fail]", "FileTransfer finish"
_ABIS = {"aarch64": "arm64-v8a", "x86_64": "x86_64"}  # Android's names, by the kernel's
_STATES = {
    "Unauthorized": "it asks whether it trusts this PC; answer on its screen",
    "Offline": "it does not answer; unplug it and plug it in again, or try `hdc kill -r`",
}


class Hdc(PhoneShell):
    """One device's shell and files."""

    engine, listing = HDC, "hdc list targets -v"
    _options: tuple[str, ...] = ()  # of `hdc shell` and `hdc file`

    def command(self, *arguments: str) -> list[str]:
        """See `PhoneShell`."""
        return [PROGRAM, "-t", self.serial, *arguments]

    def engine_command(self, work: EngineWork) -> list[str]:
        """See `PhoneShell`."""
        exchange = work.exchange
        # Who holds the pipe open for writing keeps the engine's input from ending between two
        # requests. The shell waits in `wait`, where a signal ends it at once.
        script = (
            f"cd {work.folder} && mkdir {exchange} && "
            f"trap 'kill $engine $holder 2>/dev/null; rm -rf {exchange}' EXIT && "
            f"trap 'exit 129' HUP TERM && chmod 755 {work.program} && "
            f"mkfifo {exchange}/{REQUESTS} || {{ code=$?; echo {work.end_mark} $code; exit; }}; "
            f"sleep 1000000000 > {exchange}/{REQUESTS} 2>/dev/null & holder=$!; "
            f"echo $holder > {exchange}/{HOLDER}; "
            f"{work.variables}{work.program} < {exchange}/{REQUESTS} 2> {exchange}/words & "
            f"engine=$!; wait $engine; code=$?; cat {exchange}/words; "
            f"echo; echo {work.end_mark} $code"
        )
        exchange = f"{work.folder}/{exchange}"
        return [sys.executable, "-m", RELAY, self.serial, exchange, work.end_mark, script]

    def info(self) -> PhoneInfo:
        """See `PhoneShell`."""
        # The processor is the kernel's: boards with a 32-bit system run 64-bit programs, too.
        names = ("const.product.model", "const.ohos.apiversion")
        script = "".join(f"param get {name}; " for name in names) + "uname -m; cat /proc/meminfo"
        lines = [line.strip() for line in self.shell(script).splitlines()]
        model, api, machine, *rest = [*lines, "", "", ""]
        memory = memory_bytes(rest)
        if not api.isdecimal() or memory is None or not machine:
            raise PhoneError(f"{self.serial}: does not say which system and processor it has")
        return PhoneInfo(
            model=model or self.serial,
            abis=(_ABIS.get(machine, machine),),
            api=int(api),
            memory_bytes=memory,
        )

    def pull(self, remote: str, local: Path) -> None:
        """See `PhoneShell`."""
        what = f"file recv {remote}"
        self._transfer(what, "recv", remote, str(local), seconds=QUICK_SECONDS)

    def send_file(self, local: Path, remote: str) -> None:
        """Copies a whole file to the device.

        Raises:
            PhoneError: it could not be copied; says why in hdc's words.
        """
        seconds = QUICK_SECONDS + local.stat().st_size / SLOWEST_BYTES_S
        self._transfer(f"file send {remote}", "send", str(local), remote, seconds=seconds)

    def shell_once(self, script: str) -> str:
        """Runs a script that must not run twice; returns what it printed, whatever its exit code.

        Raises:
            PhoneError: it is not known whether it ran.
        """
        what = f"`{script:.60}`"
        said = self._ask(what, f"({script}); echo {END} $?", QUICK_SECONDS)
        if END not in said.out:
            raise PhoneError(f"{self.serial}: {what} failed: {said.reason}")
        return said.out.partition(END)[0]

    def _transfer(self, what: str, operation: str, *paths: str, seconds: float) -> None:
        said = self.run(what, "file", operation, *self._options, *paths, seconds=seconds)
        if _FAIL in said.out or _DONE not in said.out:
            self._checked(what, ToolResult(1, self._why(said), ""))

    def _why(self, said: ToolResult) -> str:
        """Returns the words for what went wrong."""
        return _reason(said)

    def _problem(self) -> str | None:
        try:
            state = devices().get(self.serial)
        except PhoneError as error:
            return str(error)
        if state == READY:
            return None
        return "hdc does not list it" if state is None else f"its state is {state}"

    def _ask(self, what: str, script: str, seconds: float) -> ToolResult:
        # The device's shell would read what it has written itself: its input is that pipe.
        script = f"exec < /dev/null; {script}"
        said = self.run(what, "shell", *self._options, script, seconds=seconds)
        return ToolResult(said.code, said.out, self._why(said) if _FAIL in said.out else said.err)

    def _append(self, local: Path, start: int, remote: str, on_bytes: OnBytes) -> str:
        total, done = local.stat().st_size, start
        folder, _, name = remote.rpartition("/")
        piece = f"{folder}/piece-{sha256(name.encode()).hexdigest()[:16]}"
        on_bytes(done)
        if not total:
            self.shell(f": >> {shlex.quote(remote)}")
        with scratch_folder() as scratch, local.open("rb") as file:
            file.seek(start)
            while done < total:
                block = file.read(PIECE_BYTES)
                (scratch / "piece").write_bytes(block)
                try:
                    self.send_file(scratch / "piece", piece)
                except PhoneError as error:
                    self.await_return(str(error))
                    self.try_shell(f"rm -f {piece}")
                    return str(error)
                problem = self._join(piece, remote, done, len(block))
                if problem:
                    return problem
                done += len(block)
                on_bytes(done)
        return ""

    def _join(self, piece: str, remote: str, start: int, count: int) -> str:
        """Appends a piece to a file on the device, once; returns what went wrong, if anything."""
        quoted = shlex.quote(remote)
        size = f"$(stat -c %s {quoted} 2>/dev/null || echo 0)"
        said = self.shell(
            f'if [ "$(stat -c %s {piece} 2>/dev/null)" = {count} ] && [ "{size}" = {start} ]; then '
            f"cat {piece} >> {quoted}; fi; rm -f {piece}; echo {size}"
        )
        *words, found = said.split("\n")[:-1] or [""]
        if found == str(start + count):
            return ""
        return " ".join(words).strip() or "the connection broke"


def connect(serial: str | None = None) -> Hdc:
    """Finds the device to use.

    Args:
        serial: its connect key; by default the only device's.

    Raises:
        PhoneError: hdc is not installed; the device is not connected, or not ready; there are
            several.
    """
    serial = choose(
        serial,
        devices(),
        ready=READY,
        advice=advice,
        listing=Hdc.listing,
        option="--serial",
        help_connect="plug one in and allow USB debugging in its developer options, or connect to "
        "it with `hdc tconn ADDRESS:PORT`",
    )
    return Hdc(serial)


def devices() -> dict[str, str]:
    """Returns the states of the connected devices by their connect keys.

    Raises:
        PhoneError: hdc is not installed, or its server does not work.
    """
    if shutil.which(PROGRAM) is None:
        raise PhoneError(
            f"{PROGRAM} is not installed; it is in the folder toolchains of OpenHarmony's SDK, and "
            "in DevEco Studio's Command Line Tools; put that folder on the PATH"
        )
    try:
        said = run_tool([PROGRAM, "list", "targets", "-v"], QUICK_SECONDS)
    except TimeoutError:
        raise PhoneError(f"`{Hdc.listing}` does not answer; try `hdc kill -r`") from None
    if said.code or _FAIL in said.out or (said.err.strip() and not said.out.strip()):
        raise PhoneError(f"`{Hdc.listing}` failed: {_reason(said)}; try `hdc kill -r`")
    rows = [re.split(r"\t+", line.strip()) for line in said.out.splitlines() if "\t" in line]
    # Serial ports that may lead to a device are listed as well.
    return {row[0]: row[2] for row in rows if len(row) > 2 and row[1] != "UART"}


def advice(state: str) -> str:
    """Says what to do with a device that is in a state other than `READY`."""
    return _STATES.get(state, "try again")


def _reason(said: ToolResult) -> str:
    """Returns hdc's own words for what went wrong."""
    lines = [line.strip() for line in said.out.splitlines() if _FAIL in line]
    return lines[0].partition(_FAIL)[2].strip() if lines else said.reason
