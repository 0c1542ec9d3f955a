"""Threads share a kernel's work by pieces, whatever core each has. Nothing here depends on time."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.engine.thread_program import build_threads
from tests.support.needs import need_compiler, need_host_engine
from tests.support.once import once

SECONDS = 120  # a launch that never ends


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_host_engine()
    need_compiler()
    folder = once(tmp_path_factory, "threads", lambda folder: build_threads(folder / "program"))
    return folder / "program"


def run(program: Path, *words: str | int) -> list[str]:
    done = subprocess.run(
        [program, *map(str, words)], capture_output=True, text=True, check=True, timeout=SECONDS
    )
    return done.stdout.split()


def ints(program: Path, *words: str | int) -> list[int]:
    return [int(word) for word in run(program, *words)]


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_others_finish_the_part_of_a_thread_that_is_stuck(program: Path, threads: int) -> None:
    stuck, pieces = ints(program, "patience", threads)
    assert stuck == 1
    assert pieces > threads


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_a_thread_at_half_speed_takes_half_as_many(program: Path, threads: int) -> None:
    slow, pieces = ints(program, "counts", threads)
    assert 1 <= slow <= pieces / (2 * threads - 1) + 1  # with equal parts: pieces / threads


@pytest.mark.parametrize("piece", [0, 11, 12, 35])
def test_an_error_in_any_piece_is_the_launchs(program: Path, piece: int) -> None:
    assert run(program, "error", 3, piece) == ["-1", "ValueError", "0"]


@pytest.mark.parametrize(
    ("threads", "most", "used", "team", "computing"),
    [
        (1, 1, 1, 1, 1),
        (2, 2, 1, 2, 1),
        (2, 2, 2, 2, 2),
        (4, 4, 3, 4, 3),
        (8, 8, 8, 8, 8),
        (2, 5, 2, 2, 2),
        (2, 5, 2, 5, 5),  # the slowest cores help
        (2, 5, 1, 5, 1),  # but not on a hot phone
        (4, 4, 3, 2, 2),
    ],
)
def test_every_piece_runs_once(
    program: Path, threads: int, most: int, used: int, team: int, computing: int
) -> None:
    pieces, once_each, seen = ints(program, "use", threads, most, used, team)
    assert pieces == once_each == (1 if computing == 1 else 12 * computing)
    assert 1 <= seen <= computing
