"""Names of the targets that have engines, and which machines run them."""

from __future__ import annotations

import platform

HOST, PHONE, EMULATOR = "host", "android-arm64", "android-x86_64"
ABIS = {"arm64-v8a": PHONE, "x86_64": EMULATOR}  # targets by Android's names of processors
# Kinds of compiled blocks, of all targets, that multiply int8 in attention of vision blocks:
# convert/blocks/byte_attention.py. Others multiply wider numbers.
INT8_ATTENTION = ("amx_", "sme_", "i8mm_", "dotprod_")
HOST_MACHINE = ("Linux", "x86_64")  # system and processor, see `this_machine`


def this_machine() -> tuple[str, str]:
    """Returns the system and the kind of processor of this machine, as Python names them."""
    return platform.system(), platform.machine()


def is_host() -> bool:
    """Tells whether engines of the target `host` are for this machine."""
    return this_machine() == HOST_MACHINE
