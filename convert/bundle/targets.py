"""Names of the targets that have engines, and which machines run them."""

from __future__ import annotations

import platform

HOST, PHONE, EMULATOR = "host", "android-arm64", "android-x86_64"
ABIS = {"arm64-v8a": PHONE, "x86_64": EMULATOR}  # targets by Android's names of processors
HOST_MACHINE = ("Linux", "x86_64")  # system and processor, see `this_machine`


def this_machine() -> tuple[str, str]:
    """Returns the system and the kind of processor of this machine, as Python names them."""
    return platform.system(), platform.machine()


def is_host() -> bool:
    """Tells whether engines of the target `host` are for this machine."""
    return this_machine() == HOST_MACHINE
