"""A flipped bit in each kind of file that the cache keeps, then a conversion of the demo."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from convert.support.cache import CACHE_VARIABLE, DAY, cache_folder
from tests.bench.convert import ROOT
from tests.support.damage import flip

TRIPLE = "x86_64-linux-musl"
NOTICE = ": damaged; "
# Which files, and what is named in the notice: the file, what it is the hash of, or its folder.
KINDS = {
    "object": (f"engine-{TRIPLE}/*.o", "file", "compiled again"),
    "its hash": (f"engine-{TRIPLE}/*.sha256", "object", "compiled again"),
    "block": ("blocks/*/*.o", "folder", "compiled again"),
    "list of blocks": ("blocks/*/objects.json", "folder", "compiled again"),
    "library": (f"libraries-{TRIPLE}/*/libc++.a", "folder", "compiled again"),
    "source package": ("packages/sentencepiece-*.tar.gz", "file", "fetched again"),
    "calibrated layer": ("calibration/*/part-layer-001.safetensors", "file", "calibrated again"),
}


def _convert(output: Path, cache: Path) -> str:
    """Converts the demo in a process of its own; returns what it said to the user."""
    environment = {**os.environ, CACHE_VARIABLE: str(cache)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.getenv("PYTHONPATH"))))
    command = [sys.executable, "-m", "convert.cli", "convert", "-o", str(output)]
    done = subprocess.run(
        [*command, "--target", "host", "--method", "awq"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


# Cheap siblings: test_caches.py, test_calibration.py, tests/engine/test_toolchain.py.
@pytest.mark.slow
def test_what_is_damaged_is_made_anew(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    before = time.time() - DAY
    others = ("zig", "calibration", "llama.cpp", "onnx", "*.jar")
    shutil.copytree(cache_folder(), cache, ignore=shutil.ignore_patterns(*others))
    for path in cache.rglob("*"):
        os.utime(path, (before, before))
    assert NOTICE not in _convert(tmp_path / "whole", cache)
    for kind, (pattern, named, remedy) in KINDS.items():
        damaged = next(path for path in sorted(cache.glob(pattern)) if _is_used(path, before))
        flip(damaged)
        said = _convert(tmp_path / "mended", cache)
        notice = {"file": damaged, "object": damaged.with_suffix(".o"), "folder": damaged.parent}
        lines = [line for line in said.splitlines() if NOTICE in line]
        assert lines == [f"warning: {notice[named]}{NOTICE}{remedy}"], kind
        for name in ("engine/host", "weights.safetensors"):
            content = (tmp_path / "whole" / name).read_bytes()
            assert (tmp_path / "mended" / name).read_bytes() == content, f"{kind}: {name}"
        shutil.rmtree(tmp_path / "mended")


def _is_used(path: Path, before: float) -> bool:
    """Tells whether a conversion marked a file, or its entry; packages have no mark."""
    entries = (path, path.parent) if path.parent.parent.parent.name == "cache" else (path,)
    return path.parent.name == "packages" or any(
        entry.stat().st_mtime > before + 60 for entry in entries
    )
