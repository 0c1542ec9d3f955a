"""The wheel alone: it converts, verifies, answers and builds APKs outside of any checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from convert.support.versions import VERSION

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("android", "configs", "convert", "quantize", "runtime")
FILES = ("pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds the wheel from a copy: setuptools leaves its own files where it builds."""
    tree, output = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, tree / name)
    build = ["pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(output)]
    subprocess.run([sys.executable, "-m", *build, str(tree)], check=True)
    return next(output.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Installs the wheel; its dependencies come from this environment."""
    folder = tmp_path_factory.mktemp("installed")
    install = ["pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder)]
    subprocess.run([sys.executable, "-m", *install, str(wheel)], check=True)
    return folder


def run(installed: Path, where: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of the installed toolkit in a folder outside of any checkout."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=where,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_what_it_carries(wheel: Path) -> None:
    """All files of the product, nothing of the tests."""
    with zipfile.ZipFile(wheel) as archive:
        carried = {name for name in archive.namelist() if ".dist-info/" not in name}
    listed = {
        str(path.relative_to(ROOT))
        for name in SOURCES
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.name[0] != "."
    }
    pages = {name for name in listed if name.endswith(".md")}
    pictures = {name for name in listed if name.startswith("android/screens/")}
    assert listed - carried <= pages | pictures
    assert carried <= listed
    licences = {name for name in pages if name.endswith("/LICENCES.md")}
    assert licences and licences <= carried
    assert f"-{VERSION}-" in wheel.name


@pytest.fixture(scope="module")
def before(installed: Path) -> dict[Path, int]:
    """The files as they were installed."""
    return snapshot(installed)


@pytest.fixture(scope="module")
def converted(
    installed: Path, before: dict[Path, int], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder outside of any checkout, in which the demo was converted."""
    folder = tmp_path_factory.mktemp("elsewhere")
    minicpmv(installed, folder, "convert", "-o", "demo", "--target", "host,android-arm64")
    return folder


def minicpmv(installed: Path, where: Path, *arguments: str) -> str:
    return run(installed, where, str(installed / "bin/minicpmv"), *arguments).stdout


def test_it_works_alone(installed: Path, converted: Path, before: dict[Path, int]) -> None:
    names = ", ".join(SOURCES)
    shown = run(installed, converted, "-c", f"import {names}; print({names}, sep=chr(10))").stdout
    assert shown.count(str(installed)) == len(SOURCES), "the checkout's modules were imported"
    assert json.loads(minicpmv(installed, converted, "verify", "demo", "--json"))["passed"]
    picture = str(installed / "configs/demo/sample.png")
    question = ("--image", picture, "--prompt", "What colour is the shape?", "--greedy")
    assert "Red." in minicpmv(installed, converted, "chat", "demo", *question)
    assert snapshot(installed) == before, "an installed toolkit is for reading only"


@pytest.mark.skipif(shutil.which("aapt2") is None, reason="aapt2 is not installed; it builds APKs")
def test_it_builds_an_apk(installed: Path, converted: Path, before: dict[Path, int]) -> None:
    minicpmv(installed, converted, "apk", "demo", "-o", "app.apk")
    with zipfile.ZipFile(converted / "app.apk") as apk:
        notices = apk.read("assets/page/notices.txt").decode()
        assert f"minicpmv {VERSION}" in notices and "assets/page/main.js" in apk.namelist()
    assert snapshot(installed) == before


def snapshot(folder: Path) -> dict[Path, int]:
    """Returns when files were written; but what Python itself writes."""
    return {
        path: path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
