"""A fake hdc, with the folder and the failures of `fake_adb.py`; see there.

It behaves as hdc's sources say: exit code 0 always, `[Fail]` on stdout, no input for a command, its
two outputs as one, and SIGTERM for the device's shell when the client is gone. `devices` is what
`hdc list targets -v` lists; `break` and `full` count the bytes of all `file send` together.

`apps/NAME` is what the phone shows of an app's files; the app's start makes it, unless `release`
says that it is not signed for debugging. With `-b NAME`, a shell works there, and may do what hdc's
own tests do, but neither rename nor change a file.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from fake_adb import STATE, cut, here, is_away, state

DONE = "FileTransfer finish, Size:{}, File count = 1, time:5ms rate:800.00kB/s"


def fail(text: str) -> int:
    print(f"[Fail]{text}")
    return 0


def send(local: str, target: Path, remote: str) -> int:
    content = Path(local).read_bytes()
    if not target.parent.is_dir():
        return fail(f"Error opening file: no such file or directory, path:{remote}")
    name = next((name for name in ("break", "full") if state(name) is not None), None)
    if name is not None:
        left = int(state(name) or 0)
        if len(content) > left:
            target.write_bytes(content[:left])
            if name == "break":
                (STATE / name).unlink()
                return 0  # says nothing
            reason = "no space left on device"
            return fail(f"Transfer Stop at:{left}/{len(content)}(Bytes), Reason: {reason}")
        (STATE / name).write_text(str(left - len(content)))
    target.write_bytes(content)
    print(DONE.format(len(content)))
    return 0


def shell(script: str, what: str | None, app: Path | None) -> int:
    """Runs a script; `what` still happens of it if the device goes away."""
    if what == "before":
        return 0
    if app is not None:
        assert ">>" not in script, "not known to be allowed"
    readonly = state("readonly")
    if readonly is not None and readonly in script:
        script = "echo mkdir: Permission denied; false" + script[script.rindex("); echo") + 1 :]
    programs = f"{STATE}/programs:" if app is None else f"{STATE}/forbidden:{STATE}/programs:"
    os.environ["PATH"] = programs + os.environ["PATH"]
    read, write = os.pipe()
    pipe = subprocess.PIPE
    with subprocess.Popen(
        ["/bin/sh", "-c", here(script)],
        cwd=app or "/",
        stdin=subprocess.DEVNULL,
        stdout=pipe,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        if os.fork() == 0:  # the daemon
            os.setsid()
            os.close(write)
            for descriptor in (0, 1, 2):
                os.close(descriptor)
            os.read(read, 1)  # until the client ends
            try:
                os.kill(process.pid, signal.SIGTERM)
            except ProcessLookupError:
                pass
            os._exit(0)
        os.close(read)
        assert process.stdout is not None
        left = int(what) if what is not None and what.isdecimal() else None
        calls = state("away") or "0"
        if left is not None:
            (STATE / "away").write_text("0")  # until then, other calls bring the requests
        while left != 0 and (line := process.stdout.readline()):
            left = None if left is None else left - 1
            if what != "after":
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()
        if left == 0:
            (STATE / "away").write_text(calls)
            os.kill(process.pid, signal.SIGTERM)
            process.stdout.read()
    return 0


def main() -> int:
    arguments = sys.argv[1:]
    with (STATE / "log").open("a") as log:
        log.write(" ".join(arguments).replace("\n", " ") + "\n")
    if state("hangs") is not None:
        time.sleep(1000)
    if arguments == ["-v"]:
        print(state("version"))
        return 0
    if arguments == ["list", "targets", "-v"]:
        if (problem := state("server")) is not None:
            print(problem, file=sys.stderr)
            return 0
        away = state("lost") is not None or int(state("away") or 0) > 0
        is_away()
        print("[Empty]" if away or not state("devices") else state("devices"))
        return 0
    assert arguments[0] == "-t", arguments
    operation, rest = arguments[2], arguments[3:]
    if state("lost") is not None or is_away():
        return fail("[E001005] Device not found or connected")
    failing, _, problem = (state("fails") or "").partition(" ")
    if operation == failing:
        return fail(problem)
    what = cut(" ".join(arguments))
    if operation == "install":
        print(f"[Info]App install path:{rest[-1]} msg:{state('install')} \nAppMod finish")
        return 0
    app = None
    if "-b" in rest:
        at = rest.index("-b")
        app = STATE / "apps" / rest[at + 1]
        if not app.is_dir():
            code = {"file": "E005101", "shell": "E003001"}[operation]
            return fail(f"[{code}] Invalid bundle name: {rest[at + 1]}")
        del rest[at : at + 2]
    if operation == "file":
        if what is not None:
            return 0
        if rest[0] == "send":
            return send(rest[1], Path(here(rest[2])) if app is None else app / rest[2], rest[2])
        shutil.copyfile(here(rest[1]), rest[2])
        print(DONE.format(0))
        return 0
    assert operation == "shell" and len(rest) == 1 and " " in rest[0], arguments
    return shell(rest[0], what, app)


if __name__ == "__main__":
    sys.exit(main())
