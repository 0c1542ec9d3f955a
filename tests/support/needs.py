"""Programs and platforms that tests need; a test without them skips with the reason."""

from __future__ import annotations

import importlib.util

import pytest

from android.build.bochs import lacks_bochs
from convert.bundle.targets import is_host
from runtime.engine_client.emulator import (
    OLDEST_WITH_SME,
    QEMU_PROGRAM,
    emulates_sme,
    emulator,
)


def need_compiler() -> None:
    """Skips where engines cannot be compiled."""
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("ziglang is not installed; it compiles the engine")


def need_host_engine() -> None:
    """Skips where the engine for this PC cannot be compiled or run."""
    if not is_host():
        pytest.skip("the host engine is for Linux on x86-64")
    need_compiler()


def need_qemu() -> str:
    """Skips where the phone's engine cannot be run; returns the emulator."""
    found = emulator()
    if found is None:
        pytest.skip(f"{QEMU_PROGRAM} is not installed; it runs the phone's program")
    return found


def need_sme() -> str:
    """Skips where Arm's matrix unit is not emulated; returns an emulator that does."""
    found = need_qemu()
    if not emulates_sme(found):
        oldest = ".".join(map(str, OLDEST_WITH_SME))
        pytest.skip(
            f"{found} is older than {oldest} and computes SMOPA wrongly; `python -m "
            "android.build.install_tools qemu` fetches a newer one"
        )
    return found


def need_bochs() -> None:
    """Skips where x86's matrix unit is not emulated."""
    if not is_host() or lacks_bochs():
        pytest.skip("`python -m android.build.install_tools tests` fetches an emulator of AMX")
