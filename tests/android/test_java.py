"""Runs the app logic's JUnit tests with this machine's Java."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from android.build.tools import java
from convert.checkpoint.config import CONFIGS
from tests.android.bundle import FAKE_ENGINE
from tests.support.java import lending


@pytest.mark.parametrize(
    "name",
    ["LogicTest", "PictureTest", "StorageTest", "ImportTest", "LentTest", "AssistantTest"],
)
def test_junit(java_classpath: str, name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(*java(), "-cp", java_classpath, f"-Djava.io.tmpdir={tmp_path}"),
            *(*lending(), f"-Dfake_engine={FAKE_ENGINE}", f"-Dconfigs={CONFIGS}"),
            *("org.junit.runner.JUnitCore", f"org.minicpmv.core.{name}"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "OK (" in done.stdout
