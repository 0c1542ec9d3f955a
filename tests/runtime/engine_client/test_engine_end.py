"""How engines end: killed while idle, stuck, left alone by the command that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from convert.bundle.manifest import Bundle
from runtime.engine_client.client import EngineClient, EngineGoneError
from runtime.engine_client.options import EngineOptions
from runtime.engine_client.places import open_place
from runtime.engine_client.process import Death, EngineDiedError, EngineProcess, kill_engines
from runtime.engine_client.protocol import Stop
from runtime.http.worker import Worker
from runtime.inputs.generation_options import GenerationOptions
from runtime.inputs.prompt import Message
from runtime.sessions.engine_session import EngineSession
from tests.support.eval_data import mmbench_row, write_mmbench
from tests.support.stop import stop
from tests.support.waiting import until
from tests.support.web import ROOT

QUESTION: list[Message] = [{"role": "user", "content": "What colour is the shape?"}]
ANSWER = GenerationOptions(max_new_tokens=8)
# The penalty makes what was said likelier, so that EOS does not come within seconds.
LONG = GenerationOptions(max_new_tokens=100_000, repetition_penalty=0.5)
HELLO = '{"event": "hello", "protocol": 1}'
PATIENCE = 300.0  # seconds; commands start, several at once
END_SECONDS = 90  # ten are enough, but not on a busy machine; where it waits wrongly, 600 pass
COMMANDS: dict[str, tuple[str, ...]] = {
    "chat": ("chat", "BUNDLE", "--prompt", "hello", "--max-new-tokens", "1000000"),
    "web": ("chat", "BUNDLE", "--web", "--no-open"),
    "serve": ("serve", "BUNDLE", "--port", "0"),
    "verify": ("verify", "BUNDLE"),
    "bench": ("bench", "BUNDLE"),
    "eval": ("eval", "BUNDLE", "--benchmark", "mmbench", "--data", "DATA", "--no-reference"),
}


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine it takes time to notice that an engine is gone."""
    monkeypatch.setattr("runtime.engine_client.client._IDLE_SECONDS", 60)


@pytest.fixture
def session(bundle: Path) -> Iterator[EngineSession]:
    opened = Bundle.open(bundle)
    session = EngineSession(open_place(opened, EngineOptions(threads=1)), opened.config, window=200)
    yield session
    session.close()


def is_gone(pid: int) -> bool:
    """Says whether a process has ended; one that nobody waited for has, too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def engines_of(pid: int, program: Path) -> list[int]:
    """Returns the engines that a process started."""
    children = [
        int(word)
        for task in Path(f"/proc/{pid}/task").glob("*/children")
        for word in task.read_text().split()
    ]
    name = str(program).encode()
    return [c for c in children if name in Path(f"/proc/{c}/cmdline").read_bytes()]


def test_one_that_was_killed_while_idle_is_not_missed(session: EngineSession) -> None:
    """Whether its end is known already, or comes just when it is asked."""
    expected = session.reply(QUESTION, None, ANSWER).ids
    for wait in (True, False):
        process = session.client()._process
        os.kill(process.pid, signal.SIGKILL)
        if wait:
            until(lambda process=process: process.exit_code is not None, seconds=PATIENCE)  # type: ignore[misc]
        assert session.reply(QUESTION, None, ANSWER).ids == expected
        assert session.client()._process.pid != process.pid


def test_one_that_is_killed_in_its_answer_is_missed(session: EngineSession) -> None:
    """The answer has begun: what is left of it cannot be told from another."""

    def kill(text: str) -> None:
        os.kill(session.client()._process.pid, signal.SIGKILL)

    with pytest.raises(EngineDiedError, match="signal 9") as caught:
        session.reply(QUESTION, None, LONG, on_text=kill)
    assert not isinstance(caught.value, EngineGoneError)
    assert session.reply(QUESTION, None, ANSWER).ids


@pytest.mark.parametrize(
    ("end", "is_idle"),
    [
        ("kill -9 $$", True),
        ("kill -15 $$", True),
        ("kill -11 $$", False),  # a crash, which would come again
        ("exit 3", False),
        ("sleep 0.3; kill -9 $$", False),  # it was at work
    ],
)
def test_what_ended_from_outside_before_it_began(
    end: str, is_idle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "sleep" in end:
        monkeypatch.setattr("runtime.engine_client.client._IDLE_SECONDS", 0.1)
    with EngineClient(["sh", "-c", f"echo '{HELLO}'; read line; {end}"], name="one") as client:
        with pytest.raises(EngineDiedError, match="one: has ended") as caught:
            client.request("reset")
        assert isinstance(caught.value, EngineGoneError) == is_idle


def test_a_stuck_one_is_given_up_soon_after_a_cancel(session: EngineSession) -> None:
    process = session.client()._process
    stopped: list[float] = []

    def stick(text: str) -> None:
        if not stopped:
            stop(process.pid)
            stopped.append(time.monotonic())

    with pytest.raises(EngineDiedError, match="has said nothing for") as caught:
        session.reply(QUESTION, None, LONG, on_text=stick, cancelled=lambda: bool(stopped))
    assert caught.value.death == Death.SILENT
    assert time.monotonic() - stopped[0] < END_SECONDS
    assert is_gone(process.pid)
    assert session.reply(QUESTION, None, ANSWER).ids


def test_a_stuck_one_ends_with_its_session(session: EngineSession) -> None:
    process = session.client()._process
    stop(process.pid)
    start = time.monotonic()
    session.close()
    assert time.monotonic() - start < END_SECONDS
    assert is_gone(process.pid)


def test_a_second_ctrl_c_leaves_no_orphan(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes while the end of a stuck engine is waited for."""
    process = EngineProcess(["sh", "-c", "exec sleep 1000"], name="sleeper", environment={})
    stop(process.pid)
    monkeypatch.setattr(
        EngineProcess, "_ends_within", lambda *_: signal.raise_signal(signal.SIGINT)
    )
    with pytest.raises(KeyboardInterrupt):
        process.close()
    assert is_gone(process.pid)


def test_a_request_to_one_that_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that its pipe does not hold is not waited for, for ever."""
    monkeypatch.setattr("runtime.engine_client.process._SEND_SECONDS", 0.3)
    client = EngineClient(["sh", "-c", f"echo '{HELLO}'; exec sleep 1000"], name="deaf")
    with pytest.raises(EngineDiedError, match="deaf: has read nothing for 0 s"):
        client.request("reset", {"text": "x" * (1 << 20)})
    client.close()


def test_a_child_that_holds_its_pipes_open_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the server does that the first call of adb leaves behind."""
    monkeypatch.setattr("runtime.engine_client.process._WORDS_SECONDS", 0.2)
    process = EngineProcess(["sh", "-c", "sleep 1000 & echo $!"], name="parent", environment={})
    child = process.receive(lambda: time.monotonic() + 300)
    process.close()
    os.kill(int(str(child)), signal.SIGKILL)


def test_work_that_is_stuck_ends_with_its_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.http.worker._END_SECONDS", 0.3)
    client = EngineClient(["sh", "-c", f"echo '{HELLO}'; exec sleep 1000"], name="stuck")
    worker = Worker()
    stuck = worker.submit(client.request, "load")
    worker.finish(client.close)
    assert isinstance(stuck.exception(), EngineDiedError)
    assert is_gone(client._process.pid)


def test_all_are_killed_at_once() -> None:
    made = [EngineProcess(["sleep", "1000"], name=None, environment={}) for _ in range(2)]
    kill_engines()
    for process in made:
        until(lambda process=process: process.exit_code == -signal.SIGKILL, seconds=PATIENCE)  # type: ignore[misc]
        process.close()


@contextmanager
def started(commands: Sequence[Sequence[str]], home: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Runs commands at the same time; none outlives the test."""
    environment = os.environ | {"XDG_DATA_HOME": str(home)}
    running = [
        subprocess.Popen(
            (sys.executable, "-m", "convert.cli", *command),
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    try:
        yield running
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.wait()
            assert process.stderr is not None
            process.stderr.close()


def test_ctrl_c_ends_every_command_whose_engine_is_stuck(bundle: Path, tmp_path: Path) -> None:
    data = write_mmbench(tmp_path / "mmbench.tsv", [mmbench_row(i) for i in range(100)])
    names = {"BUNDLE": str(bundle), "DATA": str(data)}
    commands = [tuple(names.get(word, word) for word in words) for words in COMMANDS.values()]
    program = Bundle.open(bundle).program("host").path
    with started(commands, tmp_path) as running:
        engines: list[int] = []
        waiting = dict(zip(COMMANDS, running, strict=True))

        def stop_engines() -> bool:
            """Stops each as soon as it is there: a command may be done before the last begins."""
            for name, process in list(waiting.items()):
                if found := engines_of(process.pid, program):
                    stop(found[-1])
                    engines.extend(found)
                    del waiting[name]
                assert process.poll() is None, name
            return not waiting

        until(stop_engines, seconds=PATIENCE)
        time.sleep(1)  # they wait for it
        for process in running:
            process.send_signal(signal.SIGINT)
        start = time.monotonic()
        for process, name in zip(running, COMMANDS, strict=True):
            left = max(0, start + 2 * END_SECONDS - time.monotonic())
            said = process.communicate(timeout=left)[1]
            assert process.returncode in (0, 130), (name, process.returncode, said)
        assert all(map(is_gone, engines))


@pytest.mark.parametrize(
    "words",
    [
        ("serve", "BUNDLE", "--port", "0"),
        ("chat", "BUNDLE", "--prompt", "hello", "--max-new-tokens", "1000000"),
    ],
    ids=["idle", "speaking"],
)
def test_an_engine_ends_with_a_command_that_was_killed(
    words: tuple[str, ...], bundle: Path, tmp_path: Path
) -> None:
    """Idle, or in an answer without end: it hears that nobody will ask it any more."""
    program = Bundle.open(bundle).program("host").path
    command = [str(bundle) if word == "BUNDLE" else word for word in words]
    with started([command], tmp_path) as (process,):
        engines: list[int] = []

        def found() -> list[int]:
            engines[:] = engines_of(process.pid, program)
            assert process.poll() is None
            return engines

        until(found, seconds=PATIENCE)
        time.sleep(0.5)
        process.kill()
        for engine in engines:
            until(lambda engine=engine: is_gone(engine), seconds=PATIENCE)  # type: ignore[misc]


def test_a_cancel_is_no_death(session: EngineSession) -> None:
    pieces: list[str] = []
    reply = session.reply(
        QUESTION, None, LONG, on_text=pieces.append, cancelled=lambda: bool(pieces)
    )
    assert reply.statistics.stop == Stop.CANCELLED
