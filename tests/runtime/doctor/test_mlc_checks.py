"""`doctor mlc`: what is there of MLC-LLM."""

from __future__ import annotations

import ctypes.util
from pathlib import Path

import pytest

from convert.mlc.checkout import TESTED_COMMITS
from convert.mlc.compilers import installed
from quantize.errors import ConfigError
from runtime.doctor import mlc_checks
from runtime.doctor.checks import BROKEN, NOTE, OK, Finding
from runtime.doctor.doctor import USUAL, parse_areas
from runtime.doctor.mlc_checks import SOURCE_VARIABLE, check_mlc
from tests.convert.mlc.test_checkout import write_checkout, write_git


@pytest.fixture(autouse=True)
def nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with nothing of it."""
    monkeypatch.delenv(SOURCE_VARIABLE, raising=False)
    monkeypatch.setattr(mlc_checks, "find_compiler", lambda python: None)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)


def look() -> dict[str, Finding]:
    return {finding.name: finding for finding in check_mlc(("mlc",))}


def test_it_is_looked_at_when_asked_for() -> None:
    assert parse_areas(["mlc"]) == ("mlc",)
    assert "mlc" not in USUAL


def test_nothing_is_there() -> None:
    """Nothing fails: a package is written without a compiler, too."""
    found = look()
    assert {finding.state for finding in found.values()} == {NOTE}
    assert "--mlc-source DIR" in str(found["mlc-llm checkout"].detail)
    assert found["OpenCL"].mend == "sudo apt-get install pocl-opencl-icd"


def test_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SOURCE_VARIABLE, str(tmp_path))
    broken = look()["mlc-llm checkout"]
    assert broken.state == BROKEN and "not a checkout of mlc-llm" in str(broken.detail)
    write_checkout(tmp_path)
    other = look()["mlc-llm checkout"]
    assert other.state == NOTE and "was not tried" in str(other.detail)
    write_git(tmp_path, {".git/HEAD": TESTED_COMMITS[0]})
    tested = look()["mlc-llm checkout"]
    assert (tested.state, tested.version) == (OK, f"commit {TESTED_COMMITS[0][:12]}")


def test_an_installed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlc_checks, "find_compiler", lambda python: installed("python", "0.20"))
    assert (look()["mlc_llm"].state, look()["mlc_llm"].version) == (OK, "0.20")

    def unusable(python: str | None) -> None:
        raise ConfigError("mlc_llm is there but cannot be used: no libtvm")

    monkeypatch.setattr(mlc_checks, "find_compiler", unusable)
    assert "no libtvm" in str(look()["mlc_llm"].detail)


def test_opencl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: f"lib{name}.so.1")
    assert (look()["OpenCL"].state, look()["OpenCL"].version) == (OK, "libOpenCL.so.1")
