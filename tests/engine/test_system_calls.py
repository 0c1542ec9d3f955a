"""Android kills processes for system calls that are not on its list; the engine makes none."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from convert.engine.toolchain import Toolchain, Tree, Unit
from runtime.engine_client.client import NEWEST_CPU
from tests.engine.engines import Built
from tests.engine.operations import WatchedEngine, every_operation
from tests.engine.system_calls import (
    OLDEST_CPU,
    allowed_calls,
    calls_in,
    forbidden_calls,
    traced_command,
)
from tests.support.compare import Record
from tests.support.needs import need_qemu

# Calls that the operations need: reading, mapping, writing and renaming files; threads.
EXPECTED = {
    *("openat", "read", "readv", "mmap", "munmap", "write", "pwrite64", "fstat"),
    *("renameat", "fchmod", "clone", "futex", "exit_group"),
}


@pytest.mark.parametrize(("threads", "cpu"), [(1, OLDEST_CPU), (3, OLDEST_CPU), (3, NEWEST_CPU)])
def test_every_operation_stays_within_androids_lists(
    phone_built: Built,
    tmp_path: Path,
    threads: int,
    cpu: str,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Record,
) -> None:
    monkeypatch.setenv("TVM_NUM_THREADS", str(threads))
    log, folder = tmp_path / "log", tmp_path / "folder"
    folder.mkdir()
    with WatchedEngine(traced_command(phone_built.program.path, log, cpu=cpu)) as client:
        every_operation(client, phone_built.bundle, folder)
    calls = calls_in(log.read_text())
    record_property("system calls", " ".join(sorted(calls)))
    expected = EXPECTED if threads == 1 else EXPECTED | {"sched_yield"}
    assert calls >= expected, expected - calls
    assert not forbidden_calls(calls)


def test_a_forbidden_call_is_found(tmp_path: Path) -> None:
    """In a program that makes several, one of them in a thread."""
    need_qemu()
    tests = Tree(name="tests", folder=Path(__file__).parent)
    unit = Unit(
        name="forbidden",
        trees=(tests,),
        sources=("forbidden_main.cc",),
        flags=(),
        includes=(),
        content="",
    )
    program, log = tmp_path / "program", tmp_path / "log"
    with Toolchain("aarch64-linux-musl") as toolchain:
        toolchain.link(toolchain.compile(unit, lambda *_: None), program)
    subprocess.run(traced_command(program, log), check=True, timeout=60)
    forbidden = forbidden_calls(calls_in(log.read_text()))
    assert forbidden == {
        "8.0": ["Unknown syscall 4000", "getrandom", "statx"],
        "10": ["Unknown syscall 4000", "statx"],
        "12": ["Unknown syscall 4000"],
        "15": ["Unknown syscall 4000"],
    }


def test_logs_are_read_whole() -> None:
    log = (
        '7 openat(AT_FDCWD,"/a (1)",O_RDONLY) = -1 errno=2 (No such file or directory)\n'
        "7 futex(0x5,FUTEX_WAIT,2,NULL)8 mmap(NULL,1,-1,0) = 0x0000005502b29000\n"
        " = 0\n"
        "7 clock_gettime(CLOCK_MONOTONIC,0x0000005502b27080) = 0 ({tv_sec = 1,tv_nsec = 5})\n"
        "7 ppoll(0x7f2f47fff860,2,(nil),(nil)) = 1\n"
        "7 Unknown syscall 4000\n"
        " = -1 errno=38 (Function not implemented)\n"
        "7 exit(0)7 exit_group(0)"
    )
    calls = {"openat", "futex", "mmap", "clock_gettime", "ppoll", "exit", "exit_group"}
    assert calls_in(log) == calls | {"Unknown syscall 4000"}
    for line in ("7 openat", "getrandom(1,2)", "--- SIGSYS {si_signo=SIGSYS} ---", "x = 0"):
        with pytest.raises(ValueError, match="line 9"):
            calls_in(f"{log}\n{line}\n")


def test_the_lists() -> None:
    """They differ between versions; the oldest has the calls that every program needs."""
    allowed = allowed_calls()
    assert list(allowed) == ["8.0", "10", "12", "15"]
    assert allowed["8.0"] >= EXPECTED
    for call, first in (("getrandom", 1), ("membarrier", 1), ("statx", 2), ("clone3", 3)):
        assert [call in names for names in allowed.values()] == [i >= first for i in range(4)]
