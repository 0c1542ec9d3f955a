"""An adb without a phone: commands run in a folder, and fail as files in it say.

`devices` is what `adb devices` lists; `getprop.NAME` are properties; `install` is what installing
says; `break` is how many bytes a copy survives, once; `readonly` a folder that cannot be written;
`lost` a file whose presence means that the phone is gone. `log` gets the calls.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

STATE = Path(os.environ["FAKE_ADB"])


def fail(text: str) -> int:
    print(text, file=sys.stderr)
    return 1


def copy(target: Path) -> int:
    limit_file = STATE / "break"
    limit = int(limit_file.read_text()) if limit_file.exists() else None
    with target.open("ab") as file:
        while block := sys.stdin.buffer.read(1 << 16):
            if limit is not None and len(block) > limit:
                file.write(block[:limit])
                limit_file.unlink()
                return fail("error: closed")
            file.write(block)
            limit = None if limit is None else limit - len(block)
    return 0


def shell(arguments: list[str]) -> int:
    command = " ".join(a for a in arguments if a != "-T")
    readonly = STATE / "readonly"
    if readonly.exists() and readonly.read_text() in command:
        return fail("mkdir: Permission denied")
    if command.startswith("getprop "):
        name = command.split()[1]
        print((STATE / f"getprop.{name}").read_text())
        return 0
    if command.startswith("am "):
        return 0
    if command.startswith("df ") and (STATE / "df").exists():
        print((STATE / "df").read_text())
        return 0
    if command.startswith("sha256sum ") and (STATE / "no-sha256sum").exists():
        return fail("sha256sum: not found")
    for folder in ("/sdcard", "/data/local/tmp"):
        command = command.replace(folder, f"{STATE}{folder}")
    if command.startswith("cat >> "):
        return copy(Path(command.removeprefix("cat >> ")))
    return subprocess.run(["sh", "-c", command], stdin=subprocess.DEVNULL, check=False).returncode


def main() -> int:
    arguments = sys.argv[1:]
    with (STATE / "log").open("a") as log:
        log.write(" ".join(arguments) + "\n")
    if arguments == ["devices"]:
        print("List of devices attached")
        print((STATE / "devices").read_text())
        return 0
    assert arguments[0] == "-s", arguments
    if (STATE / "lost").exists():
        return fail(f"error: device '{arguments[1]}' not found")
    operation, rest = arguments[2], arguments[3:]
    if operation == "install":
        said = (STATE / "install").read_text()
        print(said)
        return int("Failure" in said)
    if operation == "wait-for-device":
        return 0
    return shell(rest)


sys.exit(main())
