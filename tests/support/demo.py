"""The demo's bundle for this PC, made once for all tests of a session that see it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from convert.bundle.targets import is_host
from convert.cli import main


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not is_host():
        pytest.skip("the host engine is for Linux on x86-64")
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("ziglang is not installed; it compiles the engine")
    folder = tmp_path_factory.mktemp("demo") / "bundle"
    assert main(["convert", "-o", str(folder), "--target", "host"]) == 0
    return folder
