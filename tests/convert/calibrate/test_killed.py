"""A conversion that is killed while it calibrates goes on, and makes the same bundle."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from convert.bundle.manifest import Bundle
from tests.support.bundles import convert, without_programs
from tests.support.tiny import write_checkpoint

ROOT = Path(__file__).resolve().parents[3]
# Runs a conversion that kills itself where the calibration would save a file for the n-th time:
# the file is written by then, but not under its name.
CHILD = """
import os, signal, sys
import pytest
from convert.calibrate import store
from tests.support.bundles import convert, without_programs

keep, left = store.keep, int(sys.argv[1])

def keep_or_die(*arguments):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    keep(*arguments)

store.keep = keep_or_die
without_programs(pytest.MonkeyPatch())
convert(*sys.argv[2:])
"""


def test_goes_on_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_checkpoint(tmp_path / "c", decoder_only=True)
    lines = tmp_path / "samples.jsonl"
    questions = [{"question": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(8)]
    lines.write_text("\n".join(map(json.dumps, questions)))
    options = ("--method", "gptq", "--calibration", str(lines))
    monkeypatch.setenv("MINICPMV_CACHE", str(tmp_path / "cache"))
    saved = []
    for saves in (3, 5):  # at the embedding, and at the second layer
        arguments = [str(saves), str(source), str(tmp_path / "b"), *options]
        child = subprocess.run([sys.executable, "-c", CHILD, *arguments], cwd=ROOT, check=False)
        assert child.returncode == -signal.SIGKILL
        (folder,) = (tmp_path / "cache/calibration").iterdir()
        saved.append({path.name for path in folder.glob("part-*.safetensors")})
    assert saved == [set(), {"part-embed.safetensors", "part-layer-000.safetensors"}]
    assert not (tmp_path / "b").exists()
    without_programs(monkeypatch)
    assert convert(source, tmp_path / "b", *options) == 0
    monkeypatch.setenv("MINICPMV_CACHE", str(tmp_path / "other"))
    assert convert(source, tmp_path / "whole", *options) == 0
    resumed, whole = (Bundle.open(tmp_path / name).manifest.files for name in ("b", "whole"))
    assert resumed == whole
