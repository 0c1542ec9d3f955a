"""Which system calls an arm64 program makes, by qemu's log, and which Android allows."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.support.needs import need_qemu

OLDEST_CPU = "cortex-a53"
LISTS = Path(__file__).resolve().parents[1] / "golden/android/seccomp-app-arm64.json"
# `PID name(arguments)`; another thread's call may follow before the first one's result.
_CALL = re.compile(r'\d+ (\w+)\((?:"[^"]*"|\(nil\)|[^()"])*\)')
_UNKNOWN = re.compile(r"\d+ (Unknown syscall \d+)")
_RESULTS = re.compile(r"( = -?(0x)?[0-9a-f]+( errno=\d+)?( \([^()]*\))?)*")


def traced_command(program: Path, log: Path, *, cpu: str = OLDEST_CPU) -> list[str]:
    """Returns a command that logs a program's system calls; skips without an emulator."""
    return [need_qemu(), "-cpu", cpu, "-strace", "-D", str(log), str(program)]


def allowed_calls() -> dict[str, frozenset[str]]:
    """Returns the names that each version of Android allows."""
    versions = json.loads(LISTS.read_text("utf-8"))["versions"]
    return {version: frozenset(names) for version, names in versions.items()}


def calls_in(log: str) -> set[str]:
    """Returns the names of all calls in qemu's log.

    Raises:
        ValueError: a line that is not understood, in which a call might hide.
    """
    names: set[str] = set()
    for number, line in enumerate(log.splitlines(), 1):
        rest = line
        for pattern in (_CALL, _UNKNOWN):
            names.update(pattern.findall(rest))
            rest = pattern.sub("", rest)
        if not _RESULTS.fullmatch(rest):
            raise ValueError(f"line {number} of the log cannot be parsed: {line!r}")
    return names


def forbidden_calls(names: set[str]) -> dict[str, list[str]]:
    """Returns the versions of Android that would kill the process, with the forbidden calls."""
    forbidden = {version: sorted(names - allowed) for version, allowed in allowed_calls().items()}
    return {version: calls for version, calls in forbidden.items() if calls}
