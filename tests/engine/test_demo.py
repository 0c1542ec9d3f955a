"""The demo, from its checkpoint to the phone's engine: what users do first, whole."""

from __future__ import annotations

import importlib.util
import json
import platform
import shutil
from pathlib import Path
from typing import Any

import pytest

from convert.cli import main
from runtime.engine_client import QEMU_PROGRAM


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        pytest.skip("the host engine is for Linux on x86-64")
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("ziglang is not installed; it compiles the engine")
    if shutil.which(QEMU_PROGRAM) is None:
        pytest.skip(f"{QEMU_PROGRAM} is not installed; it runs the phone's program")
    folder = tmp_path_factory.mktemp("demo") / "bundle"
    assert main(["convert", "-o", str(folder), "--target", "host,android-arm64"]) == 0
    return folder


def test_both_engines_pass_and_answer_alike(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reports: list[dict[str, Any]] = []
    for engine in ("local", "qemu"):
        capsys.readouterr()
        assert main(["verify", str(demo), "--engine", engine, "--json"]) == 0
        reports.append(json.loads(capsys.readouterr().out))
        assert (reports[-1]["engine"], reports[-1]["failed_stages"]) == (engine, [])
    here, phone = (report["answers"] for report in reports)
    assert here == phone
    assert len(here) >= 12
