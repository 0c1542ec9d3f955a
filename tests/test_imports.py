"""The rooms' arrows: `[tool.importlinter]` in `pyproject.toml`, which `make test` checks."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("android", "convert", "quantize", "runtime")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the Python in the tree, with its rules."""
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            copy = tmp_path / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def check(tree: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("lint-imports")
    command = [str(program), "--no-cache"]
    environment = {"PYTHONPATH": str(tree), "PATH": "/usr/bin:/bin", "PYTHONUTF8": "1"}
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("path", "line", "arrow"),
    [
        ("quantize/layout.py", "import convert.checkpoint.config\n", "convert.checkpoint"),
        (
            "convert/support/hashing.py",
            "def late() -> None:\n    import convert.bundle.plan\n",
            "plan",
        ),
        (
            "runtime/reference/model.py",
            "import typing\nif typing.TYPE_CHECKING:\n    import runtime.verify.check\n",
            "runtime.verify",
        ),
        ("convert/pipeline.py", "import runtime.sessions.chat\n", "runtime.sessions"),
        (
            "runtime/verify/measure/run.py",
            "def late() -> None:\n    import runtime.verify.diagnose.isolate\n",
            "runtime.verify.diagnose",
        ),
    ],
)
def test_an_arrow_drawn_backwards_is_seen(tree: Path, path: str, line: str, arrow: str) -> None:
    file = tree / path
    file.write_text(f"{file.read_text('utf-8')}\n\n{line}", "utf-8")
    found = check(tree)
    assert found.returncode == 1, found.stdout + found.stderr
    assert arrow in found.stdout


def test_every_room_has_a_place_and_a_page(tree: Path) -> None:
    rules = (ROOT / "pyproject.toml").read_text("utf-8")
    for folder in FOLDERS:
        for init in (ROOT / folder).rglob("__init__.py"):
            room = init.parent.relative_to(ROOT)
            if len(room.parts) != 2:
                continue
            assert f"{room.parts[0]}.{room.parts[1]}" in rules, room
            assert (init.parent / "README.md").is_file(), room
    assert check(tree).returncode == 0
