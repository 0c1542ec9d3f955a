"""Programs and platforms that tests need; a test without them skips with the reason."""

from __future__ import annotations

import importlib.util
import shutil

import pytest

from convert.bundle.targets import is_host
from runtime.engine_client.client import QEMU_PROGRAM


def need_compiler() -> None:
    """Skips where engines cannot be compiled."""
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("ziglang is not installed; it compiles the engine")


def need_host_engine() -> None:
    """Skips where the engine for this PC cannot be compiled or run."""
    if not is_host():
        pytest.skip("the host engine is for Linux on x86-64")
    need_compiler()


def need_qemu() -> None:
    """Skips where the phone's engine cannot be run."""
    if shutil.which(QEMU_PROGRAM) is None:
        pytest.skip(f"{QEMU_PROGRAM} is not installed; it runs the phone's program")
