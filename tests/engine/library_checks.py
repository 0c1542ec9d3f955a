"""What any host of the engine as a library must hold: the file itself, and HarmonyOS's module."""

from __future__ import annotations

from pathlib import Path

from runtime.engine_client.client import LOCAL, engine_command
from runtime.engine_client.protocol import ErrorCode, Event, Field, Op
from tests.engine.engines import Built
from tests.engine.libraries import Library
from tests.engine.library_hosts import Connection, Host
from tests.engine.operations import QUESTIONS, WINDOW, WatchedEngine, ask, every_operation
from tests.support.compare import Record

GROWTH = 1 << 18  # bytes after many starts: a thread's leftovers in each start would be more


def answer(connection: Connection, bundle: Path) -> str:
    """Loads a bundle and asks; returns the answer."""
    assert connection.receive()[Field.EVENT] == Event.HELLO
    loaded = connection.ask(Op.LOAD, bundle=str(bundle), window=WINDOW)
    assert loaded[Field.EVENT] == Event.DONE
    text: str = connection.ask(Op.CHAT, messages=ask(QUESTIONS[0]), max_new_tokens=4)[Field.TEXT]
    return text


def check_operations(built: Built, library: Library, folder: Path) -> None:
    """Every operation gives what it gives with the program."""
    results = []
    for name, command in (
        ("program", engine_command(LOCAL, built.program)),
        ("library", [*library.command()]),
    ):
        used = folder / name
        used.mkdir()
        with WatchedEngine(command) as client:
            results.append(every_operation(client, built.bundle, used))
    assert results[0] == results[1]


def check_starts(host: Host, bundle: Path, starts: int, record_property: Record) -> None:
    """After starts in one process, each with a model and an answer, nothing of them is left."""
    answers = set()

    def start() -> None:
        connection = host.connect()
        answers.add(answer(connection, bundle))
        assert connection.end_input() == b""
        assert host.result() == 0
        connection.close()
        host.await_end_of_threads()

    for _ in range(5):
        start()
    warm, descriptors = int(host.status("RssAnon")), host.descriptors()
    for _ in range(starts):
        start()
    grown = (int(host.status("RssAnon")) - warm) << 10
    record_property(f"bytes more after {starts} starts", grown)
    assert grown < GROWTH
    assert host.descriptors() == descriptors
    assert len(answers) == 1


def check_two_at_once(host: Host, bundle: Path, result: int) -> None:
    """The second gets a named error; the first goes on, and after its end the next one starts.

    Args:
        host: with no engine.
        bundle: to load.
        result: what the host tells of the second.
    """
    first = host.connect()
    expected = answer(first, bundle)
    second = host.connect()
    refused = second.receive()
    assert (refused[Field.EVENT], refused[Field.CODE]) == (Event.ERROR, ErrorCode.ALREADY_RUNNING)
    assert host.result() == result
    second.close()
    again = first.ask(Op.CHAT, messages=ask(QUESTIONS[0]), max_new_tokens=4)
    assert again[Field.TEXT] == expected
    first.end_input()
    assert host.result() == 0
    first.close()
    third = host.connect()
    assert answer(third, bundle) == expected
    third.close()
