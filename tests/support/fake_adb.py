"""A fake adb: a folder stands in for the phone, and files in it say how adb fails.

The phone's files lie in `sdcard`, `data` and `proc`; `programs` has what its shell finds besides
this machine's; `getprop.NAME` are its properties. For adb:

- `devices`: what `adb devices` lists; `log` gets the calls
- `version`: what `adb version` says; `server`: why its server does not start
- `install`: what installing says
- `break`: how many bytes a copy survives, once; `full`: how many a full phone takes, every time
- `readonly`: a folder that cannot be written
- `fails`: an operation that fails, with what it says behind it
- `noise`: what a starting server prints on stdout, once
- `lost`: its presence means that the phone is gone; `hangs`: that adb never answers
"""

from __future__ import annotations

import os
import shlex
import shutil
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
                return fail("error: closed")
            file.write(block)
            limit = None if limit is None else limit - len(block)
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
    if state("lost") is not None:
        return fail(f"error: device '{arguments[1]}' not found")
    operation, rest = arguments[2], arguments[3:]
    failing, _, problem = (state("fails") or "").partition(" ")
    if operation == failing:
        return fail(problem)
    if operation == "install":
        said = state("install") or ""
        print(said)
        return int("Failure" in said)
    if operation == "wait-for-device":
        return 0
    if operation == "pull":
        shutil.copyfile(here(rest[0]), rest[1])
        return 0
    assert operation == "shell" and rest[0] == "-T", arguments
    return shell(rest[1])


sys.exit(main())
