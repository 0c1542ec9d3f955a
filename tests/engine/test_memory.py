"""After warm-up the engine's memory does not grow, whatever the requests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from runtime.engine_client.client import LOCAL, engine_command
from runtime.engine_client.protocol import ErrorCode, Field, Op
from runtime.inputs.picture_file import HEADER, MAGIC, VERSION, write_picture_file
from tests.engine.engines import Built
from tests.engine.operations import QUESTIONS, WINDOW, WatchedEngine, ask
from tests.engine.test_picture import random_picture
from tests.support.compare import Record

GROWTH = 1 << 19  # bytes; a leak of one embedding or one logits vector per turn would be more
ANONYMOUS = "RssAnon"  # without the mapped weights


@pytest.fixture
def client(built: Built, monkeypatch: pytest.MonkeyPatch) -> Iterator[WatchedEngine]:
    monkeypatch.setenv("TVM_NUM_THREADS", "2")
    with WatchedEngine(engine_command(LOCAL, built.program), quiet_seconds=60) as running:
        running.load(built.bundle, window=WINDOW)
        yield running


def _conversation(client: WatchedEngine, number: int, turns: int) -> None:
    """Chats until the window is full; every third time about a new picture, sampled or greedy."""
    image = None
    if number % 3 == 0:
        image = client.image(random_picture(30 + number % 50, 40, number))[Field.IMAGE]
    texts: list[str] = []
    for turn in range(turns):
        texts.append(f"{QUESTIONS[turn % 2]} {number}")
        options = {"do_sample": turn % 2 == 1, "seed": number, "stop": ["zz"]}
        length = 1 + (number + turn) % 12
        answer = client.chat(ask(*texts), image=image, max_new_tokens=length, options=options)
        texts.append(answer.text)


def test_a_thousand_turns(client: WatchedEngine, record_property: Record) -> None:
    turns = 10
    for number in range(20):
        _conversation(client, number, turns)
    warm = client.memory(ANONYMOUS)
    for number in range(20, 120):
        _conversation(client, number, turns)
    grown = client.memory(ANONYMOUS) - warm
    record_property("bytes after 200 turns", warm)
    record_property("bytes more after 1200 turns", grown)
    assert grown < GROWTH


@pytest.mark.parametrize("model", ["built", "sliced"])
def test_many_pictures(
    model: str,
    client: WatchedEngine,
    tmp_path: Path,
    record_property: Record,
    request: pytest.FixtureRequest,
) -> None:
    """Pictures of many sizes, with and without slices: encoded, saved to files, restored."""
    long = 300 if model == "built" else 60  # narrower ones have no whole patches
    sizes = [(7, long), (long, 7), (100, 100), (640, 480)]
    built: Built = request.getfixturevalue(model)
    if model == "sliced":
        engine = WatchedEngine(engine_command(LOCAL, built.program), quiet_seconds=60)
        request.addfinalizer(engine.close)
        engine.load(built.bundle, window=WINDOW)
        client = engine

    def look(number: int) -> None:
        picture = random_picture(*sizes[number % len(sizes)], number)
        image = client.image(picture)[Field.IMAGE]
        client.save_image(image, tmp_path / "embeddings")
        client.restore_image(tmp_path / "embeddings")

    for number in range(24):
        look(number)
    warm = client.memory(ANONYMOUS)
    for number in range(24, 224):
        look(number)
    grown = client.memory(ANONYMOUS) - warm
    record_property("bytes more after 200 pictures", grown)
    assert grown < GROWTH


def test_bundles_again_and_again(client: WatchedEngine, built: Built) -> None:
    def load() -> None:
        client.load(built.bundle, window=WINDOW)
        client.chat(ask(QUESTIONS[0]), max_new_tokens=2)

    for _ in range(5):
        load()
    warm, files = client.memory(ANONYMOUS), _open_files(client)
    for _ in range(30):
        load()
    assert client.memory(ANONYMOUS) - warm < GROWTH
    assert _open_files(client) == files


def test_bad_requests_leak_nothing(
    client: WatchedEngine, built: Built, tmp_path: Path, record_property: Record
) -> None:
    """Neither memory nor file descriptors; the next request works."""
    picture = tmp_path / "picture"
    write_picture_file(picture, random_picture(40, 40))
    (tmp_path / "short").write_bytes(picture.read_bytes()[:-1])
    (tmp_path / "empty").write_bytes(HEADER.pack(MAGIC, VERSION, 0, 0, 0))
    np.zeros(100, np.float32).tofile(tmp_path / "values")
    tap = {"what": "logits", "input": str(tmp_path / "values"), "output": str(tmp_path / "out")}
    long = ask("colour " * WINDOW)

    def try_all() -> None:
        for name in ("short", "empty", "values", "missing"):
            path = str(tmp_path / name)
            client.refuses(ErrorCode.INVALID_PICTURE, Op.IMAGE, path=path)
            client.refuses(ErrorCode.INVALID_EMBEDDINGS, Op.RESTORE_IMAGE, path=path)
            client.refuses(ErrorCode.INVALID_BUNDLE, Op.LOAD, bundle=path, window=WINDOW)
        client.refuses(ErrorCode.PROMPT_TOO_LONG, Op.CHAT, messages=long, max_new_tokens=1)
        client.refuses(ErrorCode.FILE_ERROR, Op.TAP, **tap)
        client.refuses(ErrorCode.PROMPT_TOO_LONG, Op.LOAD, bundle=str(built.bundle), window=4)
        client.send_raw(b"x" * (1 << 20) + b"\n")
        client.refuses(ErrorCode.INVALID_REQUEST, Op.RESET)
        assert client.chat(ask(QUESTIONS[0]), max_new_tokens=2).ids

    for _ in range(5):
        try_all()
    warm, files = client.memory(ANONYMOUS), _open_files(client)
    for _ in range(50):
        try_all()
    record_property("bytes more after 50 rounds", client.memory(ANONYMOUS) - warm)
    assert client.memory(ANONYMOUS) - warm < GROWTH
    assert _open_files(client) == files


def test_a_line_of_100_megabytes(client: WatchedEngine) -> None:
    """It is skipped, not buffered."""
    before = client.memory("VmHWM")
    part = b"x" * 1_000_000
    client.send_raw(b'{"op": "reset", "text": "')
    for _ in range(100):
        client.send_raw(part)
    client.send_raw(b'"}\n')
    client.refuses(ErrorCode.INVALID_REQUEST, Op.RESET)
    assert client.memory("VmHWM") - before < 64 << 20
    assert client.chat(ask(QUESTIONS[0]), max_new_tokens=2).ids


def _open_files(client: WatchedEngine) -> list[str]:
    return sorted(os.listdir(f"/proc/{client._process.pid}/fd"))
