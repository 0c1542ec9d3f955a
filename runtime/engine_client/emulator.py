"""The emulator that runs the phone's engine on this PC.

Debian 12's qemu 7.2 computes Arm's int8 outer products (SMOPA) wrongly, Debian 13's qemu 10.0
rightly. So the toolkit's cache may hold a newer one than the system; `android/build/emulator.py`
fetches it.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from convert.support.ask import ask
from convert.support.cache import cache_folder, is_whole

QEMU_PROGRAM = "qemu-aarch64-static"
OLDEST_WITH_SME = (10, 0)  # older ones were not tried, or are wrong


def kept_emulator() -> Path:
    """Returns the path of the cache's emulator, whether or not it exists."""
    return cache_folder() / "packages" / "qemu-aarch64"


def emulator() -> str | None:
    """Returns the program that emulates phones: the cache's if it is whole, or the system's."""
    kept = kept_emulator()
    return str(kept) if is_whole(kept) else shutil.which(QEMU_PROGRAM)


def emulates_sme(program: str) -> bool:
    """Tells whether an emulator is new enough to compute outer products rightly."""
    return emulator_version(program) >= OLDEST_WITH_SME


def emulator_version(program: str) -> tuple[int, ...]:
    """Returns an emulator's version; empty if it does not tell."""
    output, _ = ask([program, "--version"])
    found = re.search(r"version ([\d.]+)", output)
    return tuple(int(part) for part in found[1].strip(".").split(".")) if found else ()
