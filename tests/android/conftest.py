from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

from android.build.builder import APP, build_apk, compile_java, plan_apk
from android.build.signing import Key, debug_key
from android.build.tools import ToolError, package
from convert.bundle.manifest import Bundle
from convert.bundle.plan import Recipe, make_plan
from convert.checkpoint.reader import Checkpoint
from convert.conversion.bundle_writer import write_bundle
from tests.support.conversions import conversion_of
from tests.support.fake_phone import FakePhone, fake_phone
from tests.support.tiny import write_checkpoint

JAVA = Path(__file__).parent / "java"
TOOLS = ("aapt2", "zipalign", "apksigner", "dexdump", "keytool", "qemu-aarch64-static")


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


@pytest.fixture(scope="session")
def tools(java_tools: None) -> None:
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}; Debian has them")


@pytest.fixture(scope="session")
def bundle(tools: None, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("ziglang is not installed; it compiles the engine")
    folder = tmp_path_factory.mktemp("phone")
    source = Checkpoint.open(write_checkpoint(folder / "checkpoint"))
    plan = make_plan(source.config, source.untied_head, Recipe.load("q4f16_1"))
    (folder / "bundle").mkdir()
    conversion = conversion_of(source, "android-arm64", "android-x86_64")
    write_bundle(conversion, plan, folder / "bundle")
    return Bundle.open(folder / "bundle")


@pytest.fixture(scope="session")
def key(tools: None, tmp_path_factory: pytest.TempPathFactory) -> Key:
    return debug_key(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="session")
def apk(bundle: Bundle, key: Key, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("apk") / "chat.apk"
    build_apk(plan_apk(bundle, None, embed=False), key, output, _quiet, password="")
    return output


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePhone:
    return fake_phone(tmp_path, monkeypatch)


def _quiet(stage: str, done: int, total: int) -> None:
    """Shows nothing."""
