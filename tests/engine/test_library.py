"""The engine as a shared library: several starts in one process, and a good guest in it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from convert.bundle.program import Program
from convert.engine.build import ENTRY
from convert.engine.toolchain import PAGE_BYTES
from runtime.engine_client.process import EngineDiedError
from runtime.engine_client.protocol import ErrorCode, Event, Field, Op
from tests.engine.engines import Built
from tests.engine.libraries import Library
from tests.engine.library_checks import (
    answer,
    check_operations,
    check_starts,
    check_two_at_once,
)
from tests.engine.library_hosts import SECONDS, Host
from tests.engine.operations import (
    ENDLESS_TOKENS,
    QUESTIONS,
    REPEATING,
    WINDOW,
    WatchedEngine,
    ask,
    every_operation,
)
from tests.support.compare import Record
from tests.support.elf import INTERPRETER, LOAD, Elf

STARTS = 100


@pytest.fixture
def host(library: Library, tmp_path: Path) -> Iterator[Host]:
    running = Host(library, tmp_path, threads=3)
    yield running
    running.close()


@pytest.mark.parametrize("kind", ["library", "phone_library"])
def test_the_file(kind: str, request: pytest.FixtureRequest, record_property: Record) -> None:
    """It needs musl's libc only, exports one function, and fits pages of 16 KiB."""
    library: Library = request.getfixturevalue(kind)
    elf = Elf.read(library.path)
    assert elf.machine == ("x86_64" if kind == "library" else "aarch64")
    assert elf.needed == ("libc.so",)
    assert elf.exports == (ENTRY,)
    assert not elf.relocates_text
    assert INTERPRETER not in [segment.kind for segment in elf.segments]
    loads = [segment for segment in elf.segments if segment.kind == LOAD]
    for segment in loads:
        assert segment.alignment >= PAGE_BYTES and segment.alignment % PAGE_BYTES == 0
        assert (segment.address - segment.offset) % segment.alignment == 0
    content = library.path.read_bytes()
    assert len(content) <= 8 * 2**20
    for place in (Path.home() / ".cache", Path("/tmp"), "site-packages"):
        assert str(place).encode() not in content
    record_property(f"{elf.machine}, bytes", len(content))


def test_every_operation_is_the_programs(built: Built, library: Library, tmp_path: Path) -> None:
    check_operations(built, library, tmp_path)


def test_every_operation_on_arm64(phone_library: Library, tmp_path: Path) -> None:
    """Under qemu, with arm64's musl."""
    with WatchedEngine([*phone_library.command()], cancel_seconds=SECONDS) as client:
        every_operation(client, phone_library.bundle, tmp_path)


def test_a_hundred_starts(library: Library, host: Host, record_property: Record) -> None:
    """In one process, each with a model and an answer; nothing of them is left."""
    check_starts(host, library.bundle, STARTS, record_property)


def test_a_second_engine_at_once(library: Library, host: Host) -> None:
    check_two_at_once(host, library.bundle, result=1)


def test_a_client_that_goes_ends_its_engine(library: Library, host: Host) -> None:
    """In the middle of an answer, whose events nobody reads."""
    connection = host.connect()
    answer(connection, library.bundle)
    endless = {"messages": ask(QUESTIONS[0]), "max_new_tokens": ENDLESS_TOKENS, **REPEATING}
    connection.send(Op.CHAT, **endless)
    while connection.receive()[Field.EVENT] != Event.TEXT:
        pass
    connection.close()
    assert host.result() in (0, 1), "the end of the input, or a write that fails, comes first"
    host.await_end_of_threads()
    again = host.connect()
    answer(again, library.bundle)
    again.close()


def test_signals_are_the_hosts(library: Library, host: Host) -> None:
    """An engine at work catches and ignores none, and blocks only that of a broken pipe."""
    connection = host.connect()
    before = {name: host.signals(name) for name in ("SigCgt", "SigIgn")}
    answer(connection, library.bundle)
    assert int(host.status("Threads")) > 3
    assert {name: host.signals(name) for name in before} == before
    assert host.signals("SigBlk") == {0, 1 << (signal.SIGPIPE - 1)}
    connection.close()


def test_a_crash_is_not_hidden(built: Built, engine: list[str | Program], tmp_path: Path) -> None:
    """Weights that are cut off while they are mapped."""
    bundle = tmp_path / "bundle"
    shutil.copytree(built.bundle, bundle)
    with WatchedEngine(engine) as client:
        client.load(bundle, window=WINDOW)
        os.truncate(bundle / "weights.safetensors", 0)
        with pytest.raises(EngineDiedError, match=f"signal {signal.SIGBUS:d}"):
            client.chat(ask(QUESTIONS[0]), max_new_tokens=4)


def test_an_engine_ends_when_nobody_reads(engine: list[str | Program], built: Built) -> None:
    """Though its input stays open: at its next event."""
    with _started(engine, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        assert json.loads(process.stdout.readline())[Field.EVENT] == Event.HELLO
        process.stdout.close()
        process.stdin.write(b'{"op": "reset"}\n')
        process.stdin.flush()
        assert process.wait(SECONDS) == 1


def test_a_slow_reader_misses_nothing(library: Library, host: Host) -> None:
    """The engine waits with its events, also at a socket that does not block."""
    connection = host.connect()
    assert connection.receive()[Field.EVENT] == Event.HELLO
    count = 3000  # more events than the socket holds, and more requests than the engine queues

    def send() -> None:
        for number in range(count):
            connection.send(Op.TOKENIZE, id=number, text="x")

    sending = threading.Thread(target=send)
    sending.start()
    connection.await_full()
    got = [connection.receive()[Field.ID] for _ in range(count)]
    sending.join()
    assert got == list(range(count))
    connection.close()


@pytest.mark.parametrize(("descriptors", "code"), [(("99", "1"), 1), (("0", "99"), 1)])
def test_closed_descriptors(library: Library, descriptors: tuple[str, str], code: int) -> None:
    """An input that cannot be read is named; without an output there is nobody to tell."""
    done = subprocess.run(
        library.command(*descriptors), stdin=subprocess.PIPE, capture_output=True, timeout=SECONDS
    )
    assert (done.returncode, done.stderr) == (code, b"")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    if descriptors[1] == "1":
        assert [event[Field.EVENT] for event in events] == [Event.HELLO, Event.ERROR]
        assert events[1][Field.CODE] == ErrorCode.FILE_ERROR
        assert "cannot be read: Bad file descriptor" in events[1][Field.MESSAGE]
    else:
        assert events == []


def test_a_truncated_last_line(engine: list[str | Program]) -> None:
    """It is answered like any other, and the engine ends."""
    with _started(engine, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        out, _ = process.communicate(b'{"op": "reset", "id": 7', timeout=SECONDS)
    events = [json.loads(line) for line in out.splitlines()]
    assert [event[Field.EVENT] for event in events] == [Event.HELLO, Event.ERROR]
    assert events[1][Field.CODE] == ErrorCode.INVALID_REQUEST and process.returncode == 0


@contextmanager
def _started(command: list[str | Program], **streams: int) -> Iterator[subprocess.Popen[bytes]]:
    words = [str(word.path) if isinstance(word, Program) else word for word in command]
    process = subprocess.Popen(words, **streams)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.kill()
        process.wait()
