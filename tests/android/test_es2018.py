"""Old phones have old WebViews: the page's JavaScript is no newer than ES2018."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from android.build.builder import PAGE


@pytest.fixture(scope="module")
def parser(npm_packages: Path) -> list[str]:
    node = shutil.which("node")
    assert node is not None, "npm comes with it"
    return [node, str(npm_packages / "acorn/bin/acorn"), "--ecma2018", "--module"]


def _parses(parser: list[str], path: Path) -> str:
    done = subprocess.run(
        [*parser, "--silent", str(path)], capture_output=True, text=True, check=False
    )
    return done.stderr if done.returncode else ""


@pytest.mark.parametrize("path", sorted(PAGE.glob("*.js")), ids=lambda path: path.name)
def test_the_page(parser: list[str], path: Path) -> None:
    assert _parses(parser, path) == ""


@pytest.mark.parametrize("text", ["a?.b", "a ?? b", "try { a() } catch { b() }", "1_000"])
def test_newer_is_refused(parser: list[str], tmp_path: Path, text: str) -> None:
    (tmp_path / "newer.js").write_text(text)
    assert "newer.js 1:" in _parses(parser, tmp_path / "newer.js")
