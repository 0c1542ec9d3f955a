"""Conversations with a running engine: what is sent, what is refused, how it ends and starts."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from convert.bundle.errors import BundleError
from convert.bundle.manifest import Bundle
from convert.bundle.program import Program
from convert.support.cache import CACHE_VARIABLE
from convert.support.scratch import ScratchError
from quantize.errors import ConfigError
from runtime.engine_client import client as engine_client
from runtime.engine_client.client import EngineClient, EngineError, engine_command
from runtime.engine_client.options import LOCAL, QEMU, EngineOptions
from runtime.engine_client.places import open_place
from runtime.engine_client.process import EngineDiedError
from runtime.engine_client.protocol import ErrorCode, Field, Stage, Stop
from runtime.inputs.generation_options import GenerationOptions
from runtime.inputs.picture_format import PictureError
from runtime.inputs.prompt import Message, PromptError, Tokenizer
from runtime.sessions.engine_session import EngineSession

QUESTION = "What colour is the shape?"
ANSWER = GenerationOptions(max_new_tokens=8)
# The penalty makes what was said likelier, so that EOS does not come within seconds.
LONG = GenerationOptions(max_new_tokens=100_000, repetition_penalty=0.5)
RED = Image.new("RGB", (60, 40), "red")
WINDOW = 200  # tokens


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine it takes time to notice that an engine is gone."""
    monkeypatch.setattr("runtime.engine_client.client._IDLE_SECONDS", 60)


@pytest.fixture(scope="module")
def running(bundle: Path) -> Iterator[EngineSession]:
    opened = Bundle.open(bundle)
    place = open_place(opened, EngineOptions(threads=1))
    session = EngineSession(place, opened.config, window=WINDOW)
    yield session
    session.close()


@pytest.fixture
def session(running: EngineSession) -> EngineSession:
    """One whose cache is empty."""
    running.reset()
    return running


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The sizes of the pictures that the engine gets."""
    sizes: list[tuple[int, int]] = []
    image = EngineClient.image

    def watched(self, picture, *rest, **limits):
        sizes.append(picture.size)
        return image(self, picture, *rest, **limits)

    monkeypatch.setattr(EngineClient, "image", watched)
    return sizes


def user(*texts: str) -> list[Message]:
    """Turns of user and assistant, a user's first."""
    return [{"role": "assistant" if i % 2 else "user", "content": t} for i, t in enumerate(texts)]


def kill(session: EngineSession) -> None:
    """Ends the engine behind its session's back."""
    process = session.client()._process
    os.kill(process.pid, signal.SIGKILL)
    while process.exit_code is None:
        time.sleep(0.01)


def test_a_second_question_reuses_the_first(session, sent):
    pieces: list[str] = []
    stages: set[str] = set()
    first = session.reply(
        user(QUESTION),
        RED,
        ANSWER,
        on_text=pieces.append,
        on_progress=lambda stage, done, total: stages.add(stage),
    )
    assert "".join(pieces) == first.text
    assert stages == {Stage.ENCODE, Stage.PREFILL}
    s = first.statistics
    assert (s.generated_tokens, s.decode_steps, s.stop) == (8, 7, Stop.LENGTH)
    assert s.encode_ms > 0 and s.prefill_ms > 0 and s.decode_ms > 0
    messages = user(QUESTION, first.text, "How many?")
    second = session.reply(messages, RED.copy(), ANSWER)
    assert second.statistics.encode_ms == 0
    assert second.statistics.reused_tokens >= s.prompt_tokens - 3
    assert sent == [RED.size], "a picture that the engine knows is not sent again"
    session.reset()
    fresh = session.reply(messages, RED, ANSWER)
    assert (fresh.ids, fresh.statistics.reused_tokens) == (second.ids, 0)


def test_no_room_for_a_picture_is_said_and_the_session_goes_on(session, monkeypatch, tmp_path):
    def full(path: Path, picture: Image.Image) -> None:
        path.write_bytes(b"some of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    picture = Image.new("RGB", (31, 17), "yellow")
    with monkeypatch.context() as patch:
        patch.setattr(engine_client, "write_picture_file", full)
        patch.setattr(tempfile, "tempdir", str(tmp_path))
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
        with pytest.raises(ScratchError, match=f"{tmp_path}: .*No space left.*TMPDIR"):
            session.reply(user(QUESTION), picture, ANSWER)
        assert session.reply(user(QUESTION), None, ANSWER).ids
    assert list(tmp_path.iterdir()) == []
    assert session.reply(user(QUESTION), picture, ANSWER).statistics.encode_ms > 0


def test_a_picture_that_was_painted_over_is_another(session, sent):
    picture = Image.new("RGB", (50, 40), "green")
    green = session.reply(user(QUESTION), picture, ANSWER)
    picture.paste("blue", (0, 0, *picture.size))
    blue = session.reply(user(QUESTION), picture, ANSWER)
    assert len(sent) == 2
    assert blue.ids != green.ids
    picture.paste("green", (0, 0, *picture.size))
    again = session.reply(user(QUESTION), picture, ANSWER)
    assert again.ids == green.ids
    assert again.statistics.encode_ms == 0, "the engine remembers it"


def test_options_reach_the_engine(session):
    sampled = GenerationOptions(max_new_tokens=12, do_sample=True, temperature=2, top_k=50)
    answers = [session.reply(user(QUESTION), None, replace(sampled, seed=s)).ids for s in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]
    plain = session.reply(user(QUESTION), None, replace(ANSWER, max_new_tokens=30)).ids
    penal = replace(ANSWER, max_new_tokens=30, repetition_penalty=50.0)
    ids = session.reply(user(QUESTION), None, penal).ids
    assert len(set(ids)) == len(ids) > len(set(plain)), "nothing is said twice"


def test_a_stop_text_ends_the_answer_before_it(session):
    free = session.reply(user(QUESTION), None, replace(ANSWER, max_new_tokens=30)).text
    stop = free[5:8]
    options = replace(ANSWER, max_new_tokens=30, stop=("never said", stop))
    reply = session.reply(user(QUESTION), None, options)
    assert reply.statistics.stop == Stop.STOP_STRING
    assert reply.text == free[: free.index(stop)].strip()


def test_as_the_original_prompts_are_cut(bundle):
    opened = Bundle.open(bundle)
    place = open_place(opened, EngineOptions(threads=1))
    session = EngineSession(place, opened.config, window=2100, as_original=True)
    reply = session.reply(user("a b c d e f g h " * 200), None, ANSWER)
    session.close()
    assert reply.statistics.prompt_tokens == 2048


def test_as_the_original_turns_come_in_any_order(bundle, session):
    """Two questions in a row, an answer last, an empty question: refused, or answered."""
    odd = [
        [*user(QUESTION), *user(QUESTION)],
        [*user(QUESTION), {"role": "assistant", "content": "It is"}],
        user(""),
    ]
    opened = Bundle.open(bundle)
    place = open_place(opened, EngineOptions(threads=1))
    original = EngineSession(place, opened.config, window=2100, as_original=True)
    with closing(original):
        for messages in odd:
            with pytest.raises(PromptError):
                session.reply(messages, RED, ANSWER)
            reply = original.reply(messages, RED, ANSWER)
            expected = Tokenizer(opened.tokenizer).prompt(messages, 9, as_original=True)
            assert reply.statistics.prompt_tokens == len(expected.ids)
            assert reply.ids


def test_top_p_of_0_leaves_the_likeliest(session):
    options = replace(ANSWER, max_new_tokens=30, do_sample=True, top_k=0, top_p=0.0, seed=1)
    likeliest = session.reply(user(QUESTION), RED, replace(ANSWER, max_new_tokens=30)).ids
    assert session.reply(user(QUESTION), RED, options).ids == likeliest


def test_a_picture_is_cancelled(session):
    """Before its first block: there is no answer, and the next question gets one."""
    large = Image.effect_noise((3000, 3000), 50)
    reply = session.reply(user(QUESTION), large, ANSWER, cancelled=lambda: True)
    assert (reply.text, reply.ids, reply.statistics.stop) == ("", [], Stop.CANCELLED)
    assert reply.statistics.prompt_tokens == 0
    assert session.reply(user(QUESTION), RED, ANSWER).ids


def test_an_answer_is_cancelled(session):
    pieces: list[str] = []
    reply = session.reply(
        user(QUESTION), RED, LONG, on_text=pieces.append, cancelled=lambda: bool(pieces)
    )
    assert reply.statistics.stop == Stop.CANCELLED
    assert "".join(pieces) == reply.text != ""
    again = session.reply(user(QUESTION), RED, ANSWER)
    prompt = again.statistics.prompt_tokens
    # A busy machine lets the cancel wait. The last token may have been computed, or not yet.
    has_slid = prompt + reply.statistics.decode_steps >= WINDOW
    assert again.statistics.reused_tokens == (0 if has_slid else prompt - 1)


def test_an_exception_in_between_ends_the_answer(session):
    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    expected = session.reply(user(QUESTION), RED, ANSWER)
    with pytest.raises(KeyboardInterrupt):
        session.reply(user(QUESTION), RED, LONG, on_text=interrupt)
    assert session.reply(user(QUESTION), RED, ANSWER).ids == expected.ids


def test_an_engine_that_died_starts_again_with_the_next_question(session, sent):
    picture = Image.new("RGB", (50, 40), "orange")
    first = session.reply(user(QUESTION), picture, ANSWER)
    messages = user(QUESTION, first.text, "How many?")
    expected = session.reply(messages, picture, ANSWER)
    kill(session)
    again = session.reply(messages, picture, ANSWER)
    assert again.ids == expected.ids
    assert sent == [picture.size] * 2
    kill(session)
    session.reset()
    assert session.reply(messages, picture, ANSWER).ids == expected.ids


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "empty"),
        (user(" \n"), "prompt is empty"),
        (user("a", "b"), "last message is the assistant's"),
        (user("half a pair: \ud83d"), "no valid Unicode"),
        (user("a b c d e f " * 60), r"context window of 200 .* larger window"),
    ],
)
def test_a_malformed_conversation_is_refused(session, messages, problem):
    with pytest.raises(PromptError, match=problem):
        session.reply(messages, RED, ANSWER)
    assert session.reply(user(QUESTION), RED, ANSWER).ids


def test_beam_search_is_refused(session):
    beams = GenerationOptions(max_new_tokens=4, num_beams=3)
    with pytest.raises(ConfigError, match=r"no beam search.*--engine reference"):
        session.reply(user(QUESTION), RED, beams)


def test_a_decoder_takes_no_picture(session, monkeypatch):
    decoder = replace(session.config, vision=None, resampler=None)
    monkeypatch.setattr(session, "config", decoder)
    with pytest.raises(PictureError, match="no vision encoder"):
        session.reply(user(QUESTION), RED, ANSWER)


def test_errors_that_no_user_can_mend_keep_their_code(session, monkeypatch):
    monkeypatch.setattr(session, "_picture", None)
    line = {Field.IMAGE: "0", Field.REMEMBERED: 1}
    monkeypatch.setattr(EngineClient, "image", lambda *_, **__: line)
    with pytest.raises(EngineError) as error:
        session.reply(user(QUESTION), RED, ANSWER)
    assert error.value.code == ErrorCode.UNKNOWN_PICTURE


@pytest.mark.parametrize("window", [0, 4])
def test_a_window_without_room_is_refused(bundle, window):
    opened = Bundle.open(bundle)
    place = open_place(opened, EngineOptions())
    with pytest.raises(PromptError, match=f"context window (is )?{window}"):
        EngineSession(place, opened.config, window=window)


def test_threads_are_those_of_the_engine(session):
    assert session.client().hello[Field.THREADS] == 1


def test_a_bundle_that_changed_since_is_refused(bundle, tmp_path):
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    opened = Bundle.open(folder)
    (folder / "weights.safetensors").write_bytes(b"short")
    with pytest.raises(BundleError, match=r"weights\.safetensors: truncated"):
        EngineSession(open_place(opened, EngineOptions()), opened.config, window=WINDOW)


def test_a_program_that_may_not_be_executed_is_named(bundle, tmp_path):
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    (folder / "engine" / "host").chmod(0o644)
    opened = Bundle.open(folder)
    with pytest.raises(EngineDiedError, match=r"does not start: Permission denied; try `chmod \+x"):
        EngineSession(open_place(opened, EngineOptions()), opened.config, window=WINDOW)


def test_a_bundle_without_the_phones_engine_is_refused(bundle):
    with pytest.raises(BundleError, match="convert again with --target android-arm64"):
        open_place(Bundle.open(bundle), EngineOptions(engine=QEMU))


def test_other_machines_are_told_what_to_do(bundle, monkeypatch):
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    with pytest.raises(ConfigError, match="this is Darwin on arm64: try --engine reference"):
        open_place(Bundle.open(bundle), EngineOptions(engine=LOCAL))


def test_a_missing_qemu_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    with pytest.raises(EngineDiedError, match="qemu-aarch64-static is not installed"):
        engine_command(QEMU, Program(tmp_path / "engine", "0" * 64))


def test_an_engine_that_hangs_is_reported(monkeypatch):
    """It says hello, then nothing, and does not even end with its input."""
    monkeypatch.setattr("runtime.engine_client.process._TERM_SECONDS", 600)
    hello = '{"event": "hello", "protocol": 1}'
    script = f"echo '{hello}'; echo so tired >&2; exec sleep 1000"
    client = EngineClient(["sh", "-c", script], name="sleeper", quiet_seconds=0.3)
    asked: list[bool] = []
    with pytest.raises(EngineDiedError, match="sleeper: has said nothing for 0 s: so tired"):
        client.request("reset", cancelled=lambda: bool(asked.append(True)))
    assert len(asked) > 2, "a cancel would have been heard meanwhile"
    start = time.monotonic()
    client.close()
    assert time.monotonic() - start < 300, "it had its time to answer"
