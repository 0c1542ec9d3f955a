"""The demo end to end, from its checkpoint to the phone's engine, as users run it first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from convert.cli import main
from tests.support.needs import need_qemu


def test_both_engines_pass_and_answer_alike(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    need_qemu()
    reports: list[dict[str, Any]] = []
    for engine in ("local", "qemu"):
        capsys.readouterr()
        assert main(["verify", str(demo), "--engine", engine, "--json"]) == 0
        reports.append(json.loads(capsys.readouterr().out))
        assert (reports[-1]["engine"], reports[-1]["failed_stages"]) == (engine, [])
    here, phone = (report["answers"] for report in reports)
    assert here == phone
    assert len(here) >= 12
