"""The app's logic, compiled for this PC's Java."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from android.build.builder import APP, compile_java
from android.build.tools import ToolError, package
from tests.support.once import once

TESTS = Path(__file__).parents[1] / "android" / "java" / "org" / "minicpmv"
HANDOVER = Path(__file__).parents[1] / "engine" / "handover.py"
_JUNIT = ("junit", "hamcrest-core")


def need_java() -> None:
    """Skips a test where Java, or a jar, is missing."""
    for tool in ("javac", "java"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed; Debian's default-jdk-headless has it")
    try:
        for name in ("android-all", "dalvik-dx", *_JUNIT):
            package(name).fetch()
    except ToolError as error:
        pytest.skip(str(error))


def lending() -> list[str]:
    """Returns the properties that `Handover.java` needs."""
    return [f"-Dpython={sys.executable}", f"-Dhandover={HANDOVER}"]


def app_logic(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Returns the class path of the app's logic and its tests; Android's jar has org.json."""
    need_java()
    junit = [package(name).fetch() for name in _JUNIT]
    logic = APP / "java" / "org" / "minicpmv"
    sources = [
        logic / "core",
        logic / "api",
        *(TESTS / part for part in ("core", "desktop", "system")),
    ]
    made = once(
        tmp_path_factory, "java", lambda folder: compile_java(sources, folder / "classes", *junit)
    )
    classes = made / "classes"
    return os.pathsep.join(map(str, [classes, *junit, package("android-all").fetch()]))
