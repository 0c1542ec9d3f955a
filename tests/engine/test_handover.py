"""Weights that are used where they are: the engine gets a descriptor, not a path."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from convert.bundle.manifest import WEIGHTS
from convert.bundle.program import Program
from runtime.engine_client.client import LOCAL, EngineClient, EngineError, engine_command
from runtime.engine_client.process import EngineDiedError
from runtime.engine_client.protocol import ErrorCode, Event, Field, Op
from tests.engine.engines import Built
from tests.engine.handover import handing_over, send
from tests.engine.operations import QUESTIONS, WINDOW, WatchedEngine, ask
from tests.engine.system_calls import forbidden_calls

SECONDS = 60
STRANGER = 65534  # a user


@pytest.fixture
def bundle(built: Built, tmp_path: Path) -> Path:
    """The tiny model's bundle without its weights, as an app has it."""
    folder = tmp_path / "bundle"
    shutil.copytree(built.bundle, folder, ignore=shutil.ignore_patterns(WEIGHTS))
    return folder


@pytest.fixture
def weights(built: Built, tmp_path: Path) -> Path:
    path = tmp_path / "chosen"
    shutil.copy(built.bundle / WEIGHTS, path)
    return path


@contextmanager
def _open(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    descriptor = os.open(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _load(client: EngineClient, bundle: Path, *descriptors: int) -> dict[str, Any]:
    fields = {Field.BUNDLE: str(bundle), Field.WINDOW: WINDOW, Field.RECEIVE_WEIGHTS: True}
    with handing_over(client, *descriptors):
        return client.request(Op.LOAD, fields)


def _answer(client: EngineClient) -> list[int]:
    return client.chat(ask(QUESTIONS[0]), max_new_tokens=8).ids


def test_it_answers_as_with_a_file_of_its_own(
    built: Built, engine: list[str | Program], bundle: Path, weights: Path
) -> None:
    """Also when the file is deleted after it was opened, and loaded for another window."""
    with EngineClient(engine) as client:
        client.load(built.bundle, window=WINDOW)
        expected = _answer(client)
    with EngineClient(engine) as client, _open(weights) as descriptor:
        weights.unlink()
        os.lseek(descriptor, 100, os.SEEK_SET)  # where others read does not matter
        assert (
            _load(client, bundle, descriptor)[Field.WEIGHTS_BYTES] == os.fstat(descriptor).st_size
        )
        assert _answer(client) == expected
        before = _descriptors(client)
        _load(client, bundle, descriptor)
        assert _answer(client) == expected
        assert _descriptors(client) == before


def _descriptors(client: EngineClient) -> list[str]:
    return sorted(os.listdir(f"/proc/{client._process.pid}/fd"))


def test_a_file_that_the_engine_may_not_open(built: Built, bundle: Path, weights: Path) -> None:
    """As with a file of another app: opening it by its name in /proc is refused, too."""
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("root may open everything; setpriv is not installed")
    command = engine_command(LOCAL, built.program)
    if os.geteuid() == 0:
        lost = "--bounding-set=-dac_override,-dac_read_search"
        command = ["setpriv", lost, *command]
    with _open(weights) as descriptor:
        weights.chmod(0)
        (bundle / WEIGHTS).symlink_to(f"/proc/{os.getpid()}/fd/{descriptor}")
        with EngineClient(command) as client:
            with pytest.raises(EngineError, match="Permission denied"):
                client.load(bundle, window=WINDOW)
            _load(client, bundle, descriptor)
            assert _answer(client)


def test_a_host_of_the_library_names_a_descriptor(
    engine: list[str | Program], bundle: Path, weights: Path
) -> None:
    """A process that got it by inheritance stands for the app's own."""
    command = [str(word.path) if isinstance(word, Program) else word for word in engine]
    pipe = subprocess.PIPE
    with (
        _open(weights) as descriptor,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, pass_fds=[descriptor]) as process,
    ):
        load = {Field.BUNDLE: str(bundle), Field.WINDOW: WINDOW, Field.WEIGHTS_FD: descriptor}
        chat = {"messages": ask(QUESTIONS[0]), "max_new_tokens": 4}
        assert process.stdin is not None and process.stdout is not None
        for line in ({Field.OP: Op.LOAD, **load}, {Field.OP: Op.CHAT, **chat}):
            process.stdin.write(json.dumps(line).encode() + b"\n")
        process.stdin.flush()
        done = [event for event in _events(process.stdout) if event[Field.EVENT] == Event.DONE]
        process.stdin.close()
    assert done[1][Field.IDS]


def _events(output: IO[bytes]) -> Iterator[dict[str, Any]]:
    """Returns the events of two requests."""
    ends = 0
    while ends < 2:
        event = json.loads(output.readline())
        ends += event[Field.EVENT] in (Event.DONE, Event.ERROR)
        yield event


def test_what_is_no_such_file(
    engine: list[str | Program], built: Built, bundle: Path, weights: Path
) -> None:
    """Each is refused by name, and the model before it stays."""
    short = weights.with_name("short")
    short.write_bytes(weights.read_bytes()[:-1])
    other = weights.with_name("other")
    other.write_bytes(bytes(weights.stat().st_size))
    reading, writing = os.pipe()
    with WatchedEngine(engine) as client:
        client.load(built.bundle, window=WINDOW)
        expected = _answer(client)

        def refuses(problem: str, *descriptors: int, code: str = ErrorCode.INVALID_BUNDLE) -> None:
            with pytest.raises(EngineError, match=problem) as raised:
                _load(client, bundle, *descriptors)
            assert raised.value.code == code
            assert _answer(client) == expected

        for path, problem in ((short, "truncated: it has"), (other, "the header: not JSON")):
            with _open(path) as descriptor:
                refuses(problem, descriptor)
        with _open(weights, os.O_WRONLY) as descriptor:
            refuses("Permission denied", descriptor)
        with _open(bundle) as descriptor:
            refuses("not a file", descriptor)
        refuses("not a file", reading)
        refuses("a message without a descriptor came", code=ErrorCode.FILE_ERROR)
        for number in (12345, 2**40):
            fields = {Field.WINDOW: WINDOW, Field.WEIGHTS_FD: number}
            client.refuses(ErrorCode.INVALID_BUNDLE, Op.LOAD, bundle=str(bundle), **fields)
        both = {Field.WEIGHTS_FD: reading, Field.RECEIVE_WEIGHTS: True, Field.WINDOW: WINDOW}
        client.refuses(ErrorCode.INVALID_REQUEST, Op.LOAD, bundle=str(bundle), **both)
        before = _descriptors(client)
        with _open(weights) as first, _open(short) as second:
            _load(client, bundle, first, second)  # of several, the first counts
        assert _answer(client) == expected
        assert _descriptors(client) == before
    os.close(reading)
    os.close(writing)


def test_a_client_that_sends_nothing(
    engine: list[str | Program], built: Built, bundle: Path, weights: Path
) -> None:
    """It may cancel; and the end of its input ends the engine."""
    load = {Field.BUNDLE: str(bundle), Field.WINDOW: WINDOW, Field.RECEIVE_WEIGHTS: True}
    with WatchedEngine(engine) as client:
        client.load(built.bundle, window=WINDOW)
        with pytest.raises(EngineError) as raised:
            client.request(Op.LOAD, load, cancelled=lambda: True)
        assert raised.value.code == ErrorCode.CANCELLED
        assert _answer(client)
    command = [str(word.path) if isinstance(word, Program) else word for word in engine]
    text = json.dumps({Field.OP: Op.LOAD, **load}) + "\n"
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=SECONDS, check=True
    )
    last = json.loads(done.stdout.splitlines()[-1])
    assert last[Field.CODE] == ErrorCode.CANCELLED


def test_another_user_is_not_heard(built: Built, bundle: Path, weights: Path) -> None:
    """Any process may connect to an abstract name."""
    if os.geteuid() != 0:
        pytest.skip("only root can play another user")
    ends: list[int] = []
    with EngineClient(engine_command(LOCAL, built.program)) as client, _open(weights) as descriptor:
        process: Any = client._process
        receive = process.receive

        def answer(*arguments: Any) -> Any:
            line = receive(*arguments)
            if line[Field.EVENT] == Event.SOCKET:
                ends.append(_knock_as_a_stranger(line[Field.NAME]))
                send(line[Field.NAME], [descriptor])
            return line

        process.receive = answer
        fields = {Field.BUNDLE: str(bundle), Field.WINDOW: WINDOW, Field.RECEIVE_WEIGHTS: True}
        client.request(Op.LOAD, fields)
        assert _answer(client)
    assert ends == [0]


def _knock_as_a_stranger(name: str) -> int:
    """Connects as another user; returns 0 if the connection is closed."""
    child = os.fork()
    if child == 0:
        end = 1
        try:
            os.setuid(STRANGER)
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(f"\0{name}")
                end = len(connection.recv(1))
        except ConnectionError:
            end = 0
        finally:
            os._exit(end)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_its_calls_are_on_androids_lists() -> None:
    """Those of `handover.cc` and of `RegularFile`, as musl makes them on arm64."""
    calls = {"socket", "bind", "listen", "getsockname", "ppoll", "accept4", "getsockopt"}
    calls |= {"recvmsg", "fcntl", "close", "fstat"}
    assert not forbidden_calls(calls)


def test_weights_that_are_cut_off_in_use(
    engine: list[str | Program], bundle: Path, weights: Path
) -> None:
    """The engine's process ends, as with a file of its own; a new one names the fault."""
    with EngineClient(engine) as client, _open(weights) as descriptor:
        _load(client, bundle, descriptor)
        os.truncate(weights, 0)
        with pytest.raises(EngineDiedError, match=f"signal {signal.SIGBUS:d}"):
            _answer(client)
    with EngineClient(engine) as client, _open(weights) as descriptor:
        with pytest.raises(EngineError, match="truncated: it has 0 bytes"):
            _load(client, bundle, descriptor)
