"""A fake adb: a folder stands in for the phone, and files in it say how adb fails.

The phone's files lie in `sdcard`, `data` and `proc`; `programs` has what its shell finds besides
this machine's; `getprop.NAME` are its properties. For adb:

- `devices`: what `adb devices` lists; `log` gets the calls
- `version`: what `adb version` says; `server`: why its server does not start
- `install`: what installing says
- `break`: how many bytes a copy survives, once; `full`: how many a full phone takes, every time
- `cuts`: when the phone goes away, a line each: a part of the call, what still happens (`before`:
  nothing; `after`: all, but the answer is lost; a number: so many lines of an answer), and how many
  calls it then stays away, with tabs between. As of adb 29, over TCP to an adbd that was cut off:
  a shell that was begun ends with code 0 and says nothing, as when the server is killed
- `away`: for how many calls it still is
- `readonly`: a folder that cannot be written
- `fails`: an operation that fails, with what it says behind it
- `noise`: what a starting server prints on stdout, once
- `lost`: its presence means that the phone is gone; `hangs`: that adb never answers
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

STATE = Path(os.environ["FAKE_ADB"])
FOLDERS = ("/sdcard", "/data/local/tmp", "/proc/meminfo")


def fail(text: str) -> int:
    print(text, file=sys.stderr)
    return 1


def state(name: str) -> str | None:
    path = STATE / name
    return path.read_text() if path.exists() else None


def here(text: str) -> str:
    """Maps paths on the phone to paths on this machine."""
    for folder in FOLDERS:
        text = text.replace(folder, f"{STATE}{folder}")
    return text


def append(target: Path) -> int:
    breaks, full = state("break"), state("full")
    limit = next((int(text) for text in (breaks, full) if text is not None), None)
    with target.open("ab") as file:
        while block := sys.stdin.buffer.read(1 << 16):
            if limit is not None and len(block) > limit:
                file.write(block[:limit])
                if breaks is None:
                    return fail("cat: write error: No space left on device")
                (STATE / "break").unlink()
                return 0  # adb says nothing
            file.write(block)
            limit = None if limit is None else limit - len(block)
    return 0


def cut(call: str) -> str | None:
    """Returns what still happens of a call in which the phone goes away, None if it stays."""
    lines = (state("cuts") or "").splitlines()
    if not lines:
        return None
    part, what, calls = lines[0].split("\t")
    if part not in call:
        return None
    (STATE / "cuts").write_text("".join(f"{line}\n" for line in lines[1:]))
    (STATE / "away").write_text(calls)
    return what


def is_away() -> bool:
    calls = int(state("away") or 0)
    if calls > 0:
        (STATE / "away").write_text(str(calls - 1))
    return calls > 0


def cut_off(script: str, what: str) -> int:
    """Runs a script whose answer, or its rest, is lost."""
    if what == "before":
        return 0
    os.environ["PATH"] = f"{STATE}/programs:{os.environ['PATH']}"
    command = ["sh", "-c", here(script)]
    with subprocess.Popen(
        command, cwd="/", stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        if what == "after":
            process.stdout.read()
            return 0
        for _ in range(int(what)):
            sys.stdout.buffer.write(process.stdout.readline())
            sys.stdout.buffer.flush()
        os.killpg(process.pid, signal.SIGHUP)  # by the phone's adbd
    return 0


def shell(script: str) -> int:
    readonly = state("readonly")
    if readonly is not None and readonly in script:
        return fail("mkdir: Permission denied")
    if script.startswith("cat >> "):
        return append(Path(shlex.split(here(script))[-1]))
    os.environ["PATH"] = f"{STATE}/programs:{os.environ['PATH']}"
    os.chdir("/")
    os.execv("/bin/sh", ["sh", "-c", here(script)])


def main() -> int:
    arguments = sys.argv[1:]
    with (STATE / "log").open("a") as log:
        log.write(" ".join(arguments) + "\n")
    if state("hangs") is not None:
        time.sleep(1000)
    if (noise := state("noise")) is not None:
        (STATE / "noise").unlink()
        print(noise)
    if arguments == ["version"]:
        print(state("version"))
        return 0
    if arguments == ["devices"]:
        if (problem := state("server")) is not None:
            return fail(problem)
        print("List of devices attached")
        print(state("devices"))
        return 0
    assert arguments[0] == "-s", arguments
    operation, rest = arguments[2], arguments[3:]
    if state("lost") is not None:
        return fail(f"error: device '{arguments[1]}' not found")
    if is_away():
        return fail("error: device offline")
    failing, _, problem = (state("fails") or "").partition(" ")
    if operation == failing:
        return fail(problem)
    if operation == "install":
        said = state("install") or ""
        print(said)
        return int("Failure" in said)
    if operation == "get-state":
        print("device")
        return 0
    what = cut(" ".join(arguments))
    if operation == "pull":
        if what is not None:
            return fail("adb: error: failed to copy: device offline")
        shutil.copyfile(here(rest[0]), rest[1])
        return 0
    assert operation == "shell" and rest[0] == "-T", arguments
    return shell(rest[1]) if what is None else cut_off(rest[1], what)


if __name__ == "__main__":
    sys.exit(main())
