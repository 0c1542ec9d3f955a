"""The module that ArkTS imports, loaded by a stand-in of HarmonyOS's Node-API."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from android.harmony.native_module import (
    ENGINE_LIBRARY,
    MODULE,
    NODE_API,
    REGISTRATION,
    node_api_functions,
)
from convert.engine.toolchain import PAGE_BYTES
from runtime.engine_client.protocol import ErrorCode, Event, Field, Op, Stop
from tests.engine.engines import Built
from tests.engine.libraries import NAME, Library
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

STARTS = 20


@pytest.fixture
def host(module: Library, tmp_path: Path) -> Iterator[Host]:
    running = Host(module, tmp_path, threads=3)
    yield running
    running.close()


@pytest.mark.parametrize("kind", ["module", "phone_module"])
def test_the_file(kind: str, request: pytest.FixtureRequest, record_property: Record) -> None:
    """It needs what a phone has, registers itself, and fits pages of 16 KiB."""
    folder = request.getfixturevalue(kind).path.parent
    elf = Elf.read(folder / MODULE)
    assert elf.machine == ("x86_64" if kind == "module" else "aarch64")
    assert sorted(elf.needed) == [NODE_API, "libc.so", ENGINE_LIBRARY]
    assert elf.exports == (REGISTRATION,)
    assert elf.starts, "what registers the module runs when it is loaded"
    assert not elf.relocates_text
    assert INTERPRETER not in [segment.kind for segment in elf.segments]
    for segment in elf.segments:
        if segment.kind == LOAD:
            assert segment.alignment >= PAGE_BYTES and segment.alignment % PAGE_BYTES == 0
            assert (segment.address - segment.offset) % segment.alignment == 0
    assert {name for name in elf.imports if name.startswith("napi_")} <= {*node_api_functions()}
    content = (folder / MODULE).read_bytes()
    assert len(content) <= 1 << 20
    for place in (Path.home() / ".cache", Path("/tmp"), "site-packages"):
        assert str(place).encode() not in content
    assert ENGINE_LIBRARY == NAME
    record_property(f"{elf.machine}, bytes", len(content))


def test_every_operation_is_the_programs(built: Built, module: Library, tmp_path: Path) -> None:
    check_operations(built, module, tmp_path)


def test_every_operation_on_arm64(phone_module: Library, tmp_path: Path) -> None:
    """Under qemu, with arm64's musl."""
    with WatchedEngine([*phone_module.command()], cancel_seconds=SECONDS) as client:
        every_operation(client, phone_module.bundle, tmp_path)


def test_twenty_starts(module: Library, host: Host, record_property: Record) -> None:
    """Each on a thread of its own with JavaScript, with a model and an answer."""
    check_starts(host, module.bundle, STARTS, record_property)


def test_two_at_once(module: Library, host: Host) -> None:
    check_two_at_once(host, module.bundle, result=0)


def test_the_end_of_its_thread_ends_an_engine(module: Library, host: Host) -> None:
    """In the middle of an answer: the app's page is gone, and its JavaScript ends."""
    connection = host.connect()
    answer(connection, module.bundle)
    connection.send(Op.CHAT, **_endless())
    while connection.receive()[Field.EVENT] != Event.TEXT:
        pass
    connection.close()
    assert host.result() == 0
    host.await_end_of_threads()
    again = host.connect()
    answer(again, module.bundle)
    again.close()


def test_a_page_that_does_not_take_its_lines(module: Library, host: Host) -> None:
    """The engine waits in the middle of an answer, of which nothing is lost."""
    connection = host.connect()
    answer(connection, module.bundle)
    connection.send(Op.CHAT, **_endless(), top_logprobs=20)
    host.await_idle()
    connection.send(Op.CANCEL)
    tokens = []
    while (event := connection.receive())[Field.EVENT] != Event.DONE:
        if event[Field.EVENT] == Event.TOKEN:
            tokens.append(event[Field.TOKEN])
    assert event[Field.STOP] == Stop.CANCELLED
    assert event[Field.IDS] == tokens
    connection.close()


class Script:
    """Calls of the module, in a process that runs an engine."""

    def __init__(self, module: Library) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(module.command(), stdin=pipe, stdout=pipe, text=True)
        assert Event.HELLO in self.line()
        self.send({Field.OP: Op.CANCEL})
        assert Event.DONE in self.line(), "it has opened all its descriptors"

    def line(self) -> str:
        """Returns the next line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the process has ended"
        return line.removesuffix("\n")

    def send(self, request: dict[str, Any]) -> None:
        """Sends a request."""
        self._write(json.dumps(request))

    def call(self, text: str) -> str:
        """Calls a function; returns what came of it."""
        self._write(f"!{text}")
        return self.line()

    def _write(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()


@pytest.fixture
def script(module: Library) -> Iterator[Script]:
    running = Script(module)
    yield running
    running.process.communicate(timeout=SECONDS)
    assert running.process.returncode == 0


@pytest.mark.parametrize(
    ("call", "result"),
    [
        ("start", "thrown invalid_argument expected start(listener)"),
        ("start n:1", "thrown invalid_argument expected start(listener)"),
        ("start f: f:", "thrown invalid_argument expected start(listener)"),
        ("send n:1", "thrown invalid_argument expected send(engine, request)"),
        ("send s:1", "thrown invalid_argument expected send(engine, request)"),
        ("send n:99 s:{}", "thrown closed the engine has ended"),
        ("close", "thrown invalid_argument expected close(engine)"),
        ("close n:99", "returned nothing"),
    ],
)
def test_wrong_calls(script: Script, call: str, result: str) -> None:
    assert script.call(call) == f"!{result}"


def test_a_closed_engine(script: Script) -> None:
    """It takes no requests; its end comes once, and only then the next one starts."""
    assert script.call("start f:") == "!returned 2"
    assert ErrorCode.ALREADY_RUNNING in script.line()
    assert script.line() == "!end"
    assert script.call("send n:2 s:{}") == "!thrown closed the engine has ended"
    assert script.call("close n:1") == "!returned nothing"
    assert script.call("send n:1 s:{}").startswith("!thrown closed the engine has ")


def test_no_descriptor_is_left(script: Script) -> None:
    """The error is named, the other engine goes on, and later there is one."""
    pid = script.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    few = len(os.listdir(f"/proc/{pid}/fd"))
    for left in (0, 1, 2):  # a socket pair takes two, an event one
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (few + left, limits[1]))
        assert script.call("start f:").startswith("!thrown file_error no ")
        assert len(os.listdir(f"/proc/{pid}/fd")) == few
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    assert script.call("start f:").startswith("!returned")
    assert ErrorCode.ALREADY_RUNNING in script.line()


def test_too_much_waits(module: Library) -> None:
    """Requests that a busy engine does not take yet are counted: there is an end to them."""
    script = Script(module)
    try:
        script.send({Field.OP: Op.LOAD, Field.BUNDLE: str(module.bundle), Field.WINDOW: WINDOW})
        script.send({Field.OP: Op.CHAT, **_endless()})
        while Event.TEXT not in script.line():
            pass
        for _ in range(16):
            script.send({Field.OP: Op.RESET})
        for _ in range(6):
            script.send({Field.OP: Op.RESET, "unknown": "x" * (15 << 20)})
        while not (line := script.line()).startswith("!"):
            pass
        assert line == "!thrown busy too many requests wait for the engine already"
    finally:
        script.process.kill()
        script.process.communicate()


def _endless() -> dict[str, Any]:
    return {"messages": ask(QUESTIONS[0]), "max_new_tokens": ENDLESS_TOKENS, **REPEATING}
