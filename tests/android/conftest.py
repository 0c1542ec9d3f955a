from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from android.builder import APP, compile_java
from android.tools import ToolError, package

JAVA = Path(__file__).parent / "java"


@pytest.fixture(scope="session")
def java_tools() -> None:
    for tool in ("javac", "java"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed; it is in Debian's default-jdk-headless")
    try:
        for name in ("android-all", "dalvik-dx", "junit", "hamcrest-core"):
            package(name).fetch()
    except ToolError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def java_classpath(java_tools: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The app's logic and its tests, compiled; Android's jar has the JSON that phones have."""
    classes = tmp_path_factory.mktemp("java") / "classes"
    junit = [package(name).fetch() for name in ("junit", "hamcrest-core")]
    compile_java([APP / "java" / "org" / "minicpmv" / "core", JAVA], classes, *junit)
    return os.pathsep.join(map(str, [classes, *junit, package("android-all").fetch()]))
