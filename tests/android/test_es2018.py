"""Old phones have old WebViews: the page's JavaScript is no newer than ES2018."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from android.build.builder import PAGE

LOCK = Path(__file__).parent / "es2018"


@pytest.fixture(scope="module")
def parser(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The parser acorn, pinned by the lock file."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("npm is not installed; Debian's package npm has it")
    folder = tmp_path_factory.mktemp("acorn")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(LOCK / name, folder)
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"npm cannot fetch acorn: {done.stderr[:200]}")
    return [node, str(folder / "node_modules/acorn/bin/acorn"), "--ecma2018", "--module"]


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
