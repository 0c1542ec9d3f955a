"""The engine under AddressSanitizer and UndefinedBehaviorSanitizer, and fuzzed for a minute."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from convert.engine.toolchain import BuildError
from tests.engine.engines import Built
from tests.engine.fuzz import CORPUS, FuzzError, fuzz
from tests.engine.operations import WatchedEngine, every_operation
from tests.engine.sanitized import TARGETS, Sanitized, build_sanitized, clang, link_sanitized
from tests.support.compare import Record

SECONDS = 60 // len(TARGETS)  # of each fuzzer


@pytest.fixture(scope="module")
def sanitized(sliced: Built, tmp_path_factory: pytest.TempPathFactory) -> Sanitized:
    _skip_without_clang()
    return build_sanitized(sliced.bundle, tmp_path_factory.mktemp("sanitized"))


def _skip_without_clang() -> None:
    try:
        clang()
    except BuildError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("threads", [1, 2])
def test_every_operation(
    sanitized: Sanitized, tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TVM_NUM_THREADS", str(threads))
    with WatchedEngine([str(sanitized.engine)]) as client:
        every_operation(client, sanitized.bundle, tmp_path)
    # A leak is reported at exit and changes the exit code.
    assert client._process.exit_code == 0, client._process._last_words


@pytest.mark.parametrize("target", TARGETS)
def test_fuzz(
    sanitized: Sanitized,
    target: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Record,
) -> None:
    monkeypatch.chdir(tmp_path)  # where libFuzzer writes a failing input
    found = tmp_path / "found"
    found.mkdir()
    record_property(target, fuzz(sanitized, target, SECONDS, found))
    assert list((CORPUS / target).iterdir()), "starts from inputs that lead somewhere"


def test_mistakes_are_found(tmp_path: Path) -> None:
    _skip_without_clang()
    source = Path(__file__).with_name("overflow_main.cc")
    link_sanitized(source, tmp_path / "program")
    for kind, said in (
        ("buffer", "heap-buffer-overflow"),
        ("number", "signed integer overflow"),
        ("memory", "detected memory leaks"),
    ):
        done = subprocess.run([tmp_path / "program", kind], capture_output=True, text=True)
        assert done.returncode and said in done.stderr
    subprocess.run([tmp_path / "program"], check=True)


def test_a_crash_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program = shutil.which("false")
    assert program is not None
    with pytest.raises(FuzzError, match="picture"):
        fuzz(Sanitized(Path(), {"picture": Path(program)}, Path()), "picture", 1, tmp_path)
