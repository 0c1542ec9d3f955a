"""Fetches a qemu that emulates Arm's matrix unit, where the system's is too old.

It is Debian 13's, and the one program that is needed goes to the toolkit's cache.
"""

from __future__ import annotations

from pathlib import Path

from android.build.debian_package import download_package, take_member
from android.build.tools import ToolError
from convert.support.cache import keep, locked, writing
from convert.support.scratch import scratch_folder
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
    kept = kept_emulator()
    with writing(kept.parent):
        kept.parent.mkdir(parents=True, exist_ok=True)
    with locked(kept.parent):
        if lacks_emulator():
            with scratch_folder(".qemu-", kept.parent) as scratch:
                package = download_package(_PACKAGE, _SUITE, scratch, _PROBLEM)
                made = _program(package, scratch)
                with writing(kept.parent):
                    keep(made, kept)
    return kept


def _program(package: Path, scratch: Path) -> Path:
    """Takes the program out of its package."""
    made = scratch / kept_emulator().name
    take_member(package, _MEMBER, made, _PROBLEM)
    made.chmod(0o755)
    if not emulates_sme(str(made)):
        raise ToolError(f"{_PROBLEM}: the program in {package.name} does not run, or is too old")
    return made
