from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from android.build.builder import build_apk, plan_package
from android.build.library import build_aar
from android.build.signing import Key, debug_key
from android.build.tools import ToolError, fetch, package
from convert.bundle.manifest import WEIGHTS, Bundle
from convert.bundle.plan import Recipe, make_plan
from convert.checkpoint.reader import Checkpoint
from convert.conversion.bundle_writer import write_bundle
from convert.support.progress import silent
from tests.android import robolectric
from tests.android.bundle import FAKE_ENGINE, fake_bundle
from tests.engine.engines import build_host_engine
from tests.support.conversions import conversion_of
from tests.support.java import app_logic, need_java
from tests.support.needs import need_compiler, need_host_engine
from tests.support.once import once
from tests.support.screen import SIZES
from tests.support.slices import TINY_SLICES
from tests.support.tiny import write_checkpoint
from tests.support.tiny_config import tiny_config

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.android.phone import Phone

NPM = Path(__file__).parent / "npm"
TOOLS = ("aapt2", "zipalign", "apksigner", "dexdump", "keytool", "qemu-aarch64-static")


@pytest.fixture(scope="session")
def java_tools() -> None:
    need_java()


@pytest.fixture(scope="session")
def java_classpath(tmp_path_factory: pytest.TempPathFactory) -> str:
    return app_logic(tmp_path_factory)


@pytest.fixture(scope="session")
def npm_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the packages that `npm/package-lock.json` pins."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed; Debian's package npm has it")

    def make(folder: Path) -> None:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(NPM / name, folder)
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"npm cannot fetch its packages: {done.stderr[:200]}")

    return once(tmp_path_factory, "npm", make) / "node_modules"


@pytest.fixture
def start(browser: Browser, java_classpath: str, tmp_path: Path) -> Iterator[Callable[..., Phone]]:
    """Starts the app with a page and the fake engine."""
    from tests.android.phone import Phone

    started: list[Phone] = []

    def begin(
        *, weights: bool = True, size: str = "phone", slices: int | None = None, **options: Any
    ) -> Phone:
        bundle = tmp_path / "bundle"
        if not bundle.exists():
            fake_bundle(bundle, slices=slices)
        width, height = SIZES[size]
        page = browser.new_page(viewport={"width": width, "height": height})
        beside = tmp_path / f"beside-{len(started)}"
        if weights:
            shutil.copy(bundle / WEIGHTS, beside)
        phone = Phone(
            page,
            java_classpath,
            tmp_path / f"app-{len(started)}",
            bundle,
            [sys.executable, str(FAKE_ENGINE)],
            beside=beside,
            **options,
        )
        started.append(phone)
        phone.open()
        ready = "#start.empty" if weights else "#start.card"
        phone.until(
            f"document.querySelector('{ready}') && document.querySelector('#progress').hidden"
        )
        return phone

    yield begin
    for phone in started:
        phone.close()
        assert phone.errors == []


@pytest.fixture(scope="session")
def tools(java_tools: None) -> None:
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}; Debian has packages of them")


@pytest.fixture(scope="session")
def bundle(tools: None, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    need_compiler()

    def make(folder: Path) -> None:
        source = Checkpoint.open(write_checkpoint(folder / "checkpoint"))
        plan = make_plan(source.config, source.untied_head, Recipe.load("q4f16_1"))
        (folder / "bundle").mkdir()
        conversion = conversion_of(source, "android-arm64", "android-x86_64")
        write_bundle(conversion, plan, folder / "bundle")

    return Bundle.open(once(tmp_path_factory, "phones", make) / "bundle")


@pytest.fixture(scope="session")
def sliced_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A tiny model that cuts pictures, for this PC; the same as in the engine's tests."""
    need_host_engine()
    make = partial(build_host_engine, config=tiny_config(**TINY_SLICES), head="different")
    return Bundle.open(once(tmp_path_factory, "engine-slices", make) / "bundle")


@pytest.fixture(scope="session")
def key(tools: None, tmp_path_factory: pytest.TempPathFactory) -> Key:
    return debug_key(once(tmp_path_factory, "key", debug_key))


@pytest.fixture(scope="session")
def apk(bundle: Bundle, key: Key, tmp_path_factory: pytest.TempPathFactory) -> Path:

    def make(folder: Path) -> None:
        plan = plan_package(bundle, None, embed=False)
        build_apk(plan, key, folder / "chat.apk", silent, password="")

    return once(tmp_path_factory, "apk", make) / "chat.apk"


@pytest.fixture(scope="session")
def aar(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    _need("annotations")
    made = once(
        tmp_path_factory,
        "aar",
        lambda folder: build_aar(plan_package(bundle, None, embed=False), folder / "a.aar", silent),
    )
    return made / "a.aar"


@pytest.fixture(scope="session")
def sample(tools: None, demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    _need("annotations", *robolectric.SDKS.values(), *(p.name for p in robolectric.libraries()))
    opened = Bundle.open(demo)
    return once(tmp_path_factory, "sample", lambda folder: robolectric.build_sample(opened, folder))


def _need(*names: str) -> None:
    try:
        fetch([package(name) for name in names])
    except ToolError as error:
        pytest.skip(str(error))
