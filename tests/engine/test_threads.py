"""The number of threads that compute changes while the engine runs; its answers do not."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.engine_client.client import LOCAL, EngineClient, engine_command
from runtime.engine_client.protocol import ErrorCode, Field, Op, Stop
from tests.engine.engines import Built
from tests.engine.operations import (
    ENDLESS_TOKENS,
    QUESTIONS,
    REPEATING,
    WINDOW,
    WatchedEngine,
    ask,
)
from tests.engine.test_picture import random_picture
from tests.support.waiting import until

THREADS = 4
PATIENCE_SECONDS = 60


@pytest.fixture
def client(built: Built, monkeypatch: pytest.MonkeyPatch) -> Iterator[WatchedEngine]:
    monkeypatch.setenv("TVM_NUM_THREADS", str(THREADS))
    with WatchedEngine(engine_command(LOCAL, built.program), quiet_seconds=60) as running:
        running.load(built.bundle, window=WINDOW)
        yield running


def tasks(client: EngineClient) -> list[Path]:
    return sorted(Path(f"/proc/{client._process.pid}/task").iterdir())


def computed(client: EngineClient) -> list[int]:
    """Returns how long each thread has computed, ns."""
    return [int((task / "schedstat").read_text().split()[0]) for task in tasks(client)]


def await_sleep(client: EngineClient) -> None:
    """Waits until all threads sleep: after a request they spin for a moment."""

    def asleep() -> bool:
        stats = [(task / "stat").read_text() for task in tasks(client)]
        return all(stat.rpartition(")")[2].split()[0] == "S" for stat in stats)

    until(asleep)


def answers(client: EngineClient, bundle: Path) -> list[Any]:
    """Returns an answer about a picture with its logprobs, nothing of which is cached."""
    client.load(bundle, window=WINDOW)
    image = client.image(random_picture(40, 30, seed=1))[Field.IMAGE]
    found: list[Any] = []
    answer = client.chat(
        ask(QUESTIONS[0]),
        image=image,
        max_new_tokens=20,
        options={"top_logprobs": 3, **REPEATING},
        on_logprobs=found.append,
    )
    return [answer.ids, *found]


def test_answers_stay_the_same(client: WatchedEngine, built: Built) -> None:
    expected = answers(client, built.bundle)
    assert len(expected) == 21
    for threads in (1, 3, 2, THREADS, 1):
        assert client.use_threads(threads) == threads
        assert answers(client, built.bundle) == expected
    assert client.use_threads() == THREADS
    assert answers(client, built.bundle) == expected


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_others_sleep(client: WatchedEngine, built: Built, threads: int) -> None:
    client.use_threads(threads)
    await_sleep(client)
    before = computed(client)
    answers(client, built.bundle)
    busy = [b > a for a, b in zip(before, computed(client), strict=True)]
    # Of the rest, one reads the requests, and the program's first one waits for the end.
    assert 2 <= sum(busy) <= threads + 1


def test_a_running_answer_goes_on_with_fewer(client: WatchedEngine) -> None:
    began, sleep = threading.Event(), threading.Event()

    def reduce() -> None:
        began.wait(PATIENCE_SECONDS)
        client.send_raw(json.dumps({"op": Op.THREADS, "id": "x", "threads": 1}).encode() + b"\n")
        end = time.monotonic() + PATIENCE_SECONDS
        while not sleep.is_set() and time.monotonic() < end:
            before = computed(client)
            time.sleep(0.1)
            if sum(b > a for a, b in zip(before, computed(client), strict=True)) == 1:
                sleep.set()
        client.cancel()

    helper = threading.Thread(target=reduce)
    helper.start()
    answer = client.chat(
        ask(QUESTIONS[0]),
        max_new_tokens=ENDLESS_TOKENS,
        options=REPEATING,
        on_text=lambda _: began.set(),
    )
    helper.join()
    assert answer.stop == Stop.CANCELLED
    assert sleep.is_set(), "while it was answering, only one thread computed"


def test_impossible_numbers_are_refused(client: WatchedEngine, built: Built) -> None:
    client.use_threads(2)
    for threads in (0, -1, THREADS + 1, 1.5, "2", True, 2**62):
        client.refuses(ErrorCode.INVALID_REQUEST, Op.THREADS, threads=threads)
    client.refuses(ErrorCode.INVALID_REQUEST, Op.THREADS, threads=1, count=1)
    await_sleep(client)
    before = computed(client)
    answers(client, built.bundle)
    busy = [b > a for a, b in zip(before, computed(client), strict=True)]
    assert sum(busy) > 2, "and the number stays"
