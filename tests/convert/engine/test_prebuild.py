"""C++ that is compiled beside other work, and how its time is counted."""

from __future__ import annotations

import os
from threading import Event
from typing import Any

import pytest

from convert.engine import prebuild as engines_ahead
from convert.engine.prebuild import EnginePrebuild
from convert.engine.toolchain import BuildError
from convert.support import phases
from convert.support.phases import Phases

ARM, X86 = "aarch64-linux-musl", "x86_64-linux-musl"


def silent(*_: object) -> None:
    """Hears of stages."""


def test_platforms_are_compiled_once_each_beside_other_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    meanwhile, made = Event(), []

    def compile_parts(triple: str, on_progress: Any) -> None:
        assert meanwhile.wait(60), "the work in the `with` block is done while this waits"
        on_progress("engine", 1, 1)
        made.append(triple)

    monkeypatch.setattr(engines_ahead, "compile_parts", compile_parts)
    heard: list[Any] = []
    with EnginePrebuild([X86, ARM, X86], lambda *said: heard.append(said)) as ahead:
        meanwhile.set()
        ahead.wait(X86)
        assert made[0] == X86
        ahead.wait(ARM)
    assert made == [X86, ARM]
    assert heard == [("engine", 1, 1)] * 2


def test_an_error_waits_for_whoever_needs_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_parts(triple: str, on_progress: Any) -> None:
        if triple == ARM:
            raise BuildError("engine: json.cc does not compile")

    monkeypatch.setattr(engines_ahead, "compile_parts", compile_parts)
    with EnginePrebuild([ARM, X86], silent) as ahead:
        ahead.wait(X86)
        with pytest.raises(BuildError, match=r"json\.cc does not compile"):
            ahead.wait(ARM)


def test_nothing_goes_on_behind_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, made = Event(), []

    def compile_parts(triple: str, on_progress: Any) -> None:
        begun.set()
        while True:  # until hearing of progress ends it
            on_progress("engine", len(made), 0)
            made.append(triple)

    monkeypatch.setattr(engines_ahead, "compile_parts", compile_parts)
    with pytest.raises(KeyboardInterrupt), EnginePrebuild([X86, ARM], silent):
        assert begun.wait(60)
        raise KeyboardInterrupt
    assert ARM not in made


def test_programs_beside_other_phases_are_counted_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    own = programs = 0.0
    monkeypatch.setattr(phases.os, "times", lambda: os.times_result((own, 0.0, programs, 0.0, 0.0)))
    taken = Phases()
    with taken.charge_programs_to("engines"):
        with taken.measure("weights"):
            own, programs = own + 3, programs + 40
        with taken.measure("engines"):
            own, programs = own + 1, programs + 5
    with taken.measure("answers"):
        own, programs = own + 2, programs + 7
    spent = {name: phase.processor_seconds for name, phase in taken.taken.items()}
    assert spent == {"weights": 3, "engines": 46, "answers": 9}
