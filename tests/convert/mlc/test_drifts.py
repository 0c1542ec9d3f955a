"""Each bridge between MLC-LLM's source and this apache-tvm, in a process that they may change."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.convert.mlc.test_checkout import write_checkout

ROOT = Path(__file__).resolve().parents[3]
EXPECTED: dict[str, Any] = {
    "variable-names": "x",
    "constants": [True, False, "float16", "a"],
    "blocks": [True, True],
    "buffers": ["a", "b"],
    "lifted-buffers": {
        "parameters": ["a", "n", "b", "between"],
        "types": ["float32[8]"],
        "left": 0,
        "again": [],
        "patched": True,
    },
    "cpu-schedules": None,
    "downloads": "requests",
    "merged-states": [
        'T.tvm_storage_sync("shared", T.bool(False), -1)',
        "S[bx, ty + by * 4] = T.log2(s_val[0] + s_other_val[0]) + s_max[0]",
    ],
    "abi 0.27": [0, 1, 2, 3, 4, 5],
    "abi 0.26": [0, 1, 2, 3, 4],
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    checkout = write_checkout(tmp_path_factory.mktemp("mlc"))
    program = [sys.executable, "-m", "tests.convert.mlc.drift_report", str(checkout)]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


@pytest.mark.parametrize("name", list(EXPECTED))
def test_a_bridge(found: dict[str, Any], name: str) -> None:
    assert found[name] == EXPECTED[name]
