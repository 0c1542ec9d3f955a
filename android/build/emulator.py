"""Fetches a qemu that emulates Arm's matrix unit, where the system's is too old.

It is Debian 13's, and the one program that is needed goes to the toolkit's cache.
"""

from __future__ import annotations

from pathlib import Path

from android.build.debian_package import download_package, made_once, take_member
from android.build.tools import ToolError
from runtime.engine_client.emulator import emulates_sme, emulator, kept_emulator

_SUITE, _PACKAGE, _MEMBER = "trixie", "qemu-user", "./usr/bin/qemu-aarch64"
_PROBLEM = "an emulator of Arm's matrix unit cannot be fetched"


def lacks_emulator() -> bool:
    """Tells whether the emulator that would be used is missing, or too old for SME."""
    found = emulator()
    return found is None or not emulates_sme(found)


def fetch_emulator() -> Path:
    """Puts the emulator into the cache.

    Raises:
        ToolError: this is not a Debian, or apt cannot download the package.
        CacheError: the cache cannot be written.
    """
    return made_once(kept_emulator(), lacks_emulator, _program)


def _program(scratch: Path) -> Path:
    """Takes the program out of its package."""
    package = download_package(_PACKAGE, _SUITE, scratch, _PROBLEM)
    made = scratch / kept_emulator().name
    take_member(package, _MEMBER, made, _PROBLEM)
    made.chmod(0o755)
    if not emulates_sme(str(made)):
        raise ToolError(f"{_PROBLEM}: the program in {package.name} does not run, or is too old")
    return made
