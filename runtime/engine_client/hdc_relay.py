"""Stands for an engine on a device that hdc reaches: `hdc shell` forwards no input.

A process of its own, so that `process.py` starts, feeds and kills it like any engine. What it reads
goes, a line at a time, into a named pipe on the device, which is the engine's input.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType

from convert.support.scratch import scratch_folder
from runtime.engine_client.hdc import HOLDER, REQUESTS, Hdc
from runtime.engine_client.phone_shell import PhoneError

_SHORT_BYTES = 4096  # of a request that goes in a command line
_LOST = 1  # the exit code if the engine's is not known


def main(arguments: list[str]) -> int:
    """Runs an engine. Args: connect key, folder of the exchange, mark of the end, script."""
    serial, exchange, end_mark, script = arguments
    hdc = Hdc(serial)
    process = subprocess.Popen(
        hdc.command("shell", script), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )

    def end(number: int, frame: FrameType | None) -> None:
        process.kill()

    signal.signal(signal.SIGTERM, end)
    greeted = threading.Event()  # an engine speaks first; before, there is no pipe yet
    work = (hdc, exchange, process, greeted)
    threading.Thread(target=_feed, args=work, daemon=True).start()
    code = _LOST
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(b"{"):
            greeted.set()
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
            continue
        mark, _, rest = line.decode(errors="replace").strip().rpartition(" ")
        if mark == end_mark and rest.isdecimal():
            code, line = int(rest), f"{end_mark}\n".encode()
        if line.strip():
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()
    process.wait()
    return code


def _feed(
    hdc: Hdc, exchange: str, process: subprocess.Popen[bytes], greeted: threading.Event
) -> None:
    """Brings requests to the engine until they end, or cannot be brought."""
    pipe = f"{exchange}/{REQUESTS}"
    greeted.wait()
    try:
        for line in sys.stdin.buffer:
            _send(hdc, exchange, pipe, line)
        hdc.try_shell(f"kill $(cat {exchange}/{HOLDER})")
    except PhoneError as error:
        print(error, file=sys.stderr, flush=True)
        process.kill()


def _send(hdc: Hdc, exchange: str, pipe: str, line: bytes) -> None:
    """Sends a request, once: a second one would be answered as well.

    Raises:
        PhoneError: it may not have arrived.
    """
    if len(line) <= _SHORT_BYTES:
        source = f"printf '%s\\n' {shlex.quote(line.decode().rstrip())}"
    else:
        request = f"{exchange}/request"
        with scratch_folder() as folder:
            path = Path(folder) / "request"
            path.write_bytes(line)
            hdc.send_file(path, request)
        source = f"cat {request}"
    # Without the pipe the engine has ended, and its words are on their way.
    hdc.shell_once(f"[ -p {pipe} ] && {source} > {pipe}")


if __name__ == "__main__":
    # Not as an exit of the interpreter: the feeder may wait for input for ever.
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
