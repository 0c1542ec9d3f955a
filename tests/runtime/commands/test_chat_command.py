"""`minicpmv chat` on a tiny checkpoint: one answer, piped questions, a terminal."""

from __future__ import annotations

import errno
import io
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from rich.console import Console

from convert import cli
from convert.support.scratch import scratch_folder
from runtime.commands import chat as chat_command
from runtime.sessions import conversation
from runtime.sessions.reference_session import ReferenceSession
from tests.support.slices import write_slices_checkpoint
from tests.support.tiny import write_checkpoint

ROOT = Path(chat_command.__file__).resolve().parent.parent.parent
SHORT = ("--greedy", "--device", "cpu", "--max-new-tokens", "3")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("checkpoint")))


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("pictures") / "a red one.png"
    Image.new("RGB", (60, 40), "red").save(path)
    return str(path)


class Keyboard(io.StringIO):
    """What a user types into a terminal; `^C` presses Ctrl-C at the prompt."""

    def isatty(self) -> bool:
        return True

    def readline(self, *_: object) -> str:  # type: ignore[override]
        line = super().readline()
        if line == "^C\n":
            raise KeyboardInterrupt
        return line


@pytest.fixture
def seen(monkeypatch) -> list[tuple[int, bool]]:
    """For every request: its number of turns, and whether it had a picture."""
    requests: list[tuple[int, bool]] = []
    reply = ReferenceSession.reply

    def watched(self, messages, picture, options, **rest):
        requests.append((len(messages), picture is not None))
        return reply(self, messages, picture, options, **rest)

    monkeypatch.setattr(ReferenceSession, "reply", watched)
    return requests


def piped(monkeypatch, text: str, *arguments: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return cli.main(["chat", *arguments])


def typed(monkeypatch, text: str, *arguments: str) -> int:
    monkeypatch.setattr(sys, "stdin", Keyboard(text))
    return cli.main(["chat", *arguments])


def test_one_answer_on_stdout_and_all_else_on_stderr(checkpoint, picture, capsys, seen):
    code = cli.main(["chat", checkpoint, "--image", picture, "--prompt", "What?", *SHORT])
    out, err = capsys.readouterr()
    assert code == 0
    assert seen == [(1, True)]
    assert out.endswith("\n")
    assert len(out.strip()) > 0
    assert "reference engine (float32, cpu); window 1024; greedy" in err
    assert "picture " in err
    assert "answer 3 tokens" in err
    assert "cut at --max-new-tokens" in err


def test_json_is_one_line_with_the_streamed_answer(checkpoint, picture, capsys):
    arguments = ["chat", checkpoint, "--image", picture, "--prompt", "What?", *SHORT]
    assert cli.main(arguments) == 0
    streamed = capsys.readouterr().out
    assert cli.main([*arguments, "--json"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["answer"] == streamed.strip()
    assert line["statistics"]["generated_tokens"] == 3
    assert line["statistics"]["stop"] == "length"


def test_a_seed_repeats_an_answer(checkpoint, capsys):
    sampling = ("--temperature", "30", "--top-k", "0", "--top-p", "1", "--max-new-tokens", "8")
    answers = []
    for seed in ("1", "1", "2"):
        arguments = ["chat", checkpoint, "--prompt", "What?", "--seed", seed, *sampling]
        assert cli.main([*arguments, "--device", "cpu"]) == 0
        out, err = capsys.readouterr()
        assert f"temperature 30, top-k all, top-p 1, seed {seed}" in err
        answers.append(out)
    assert answers[0] == answers[1] != answers[2]


def test_piped_lines_are_turns(checkpoint, picture, monkeypatch, capsys, seen):
    lines = f"What?\n\nAnd?\n/image '{picture}'\nWhat?\nAnd?\n/reset\nWhat?\n/quit\nnever asked\n"
    assert piped(monkeypatch, lines, checkpoint, *SHORT) == 0
    assert seen == [(1, False), (3, False), (1, True), (3, True), (1, True)]
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 5
    assert "> " not in out  # no prompt off a terminal
    assert "60 x 40 pixels; the conversation starts anew" in err
    assert "remembered" in err


def test_a_piped_question_that_fails_is_reported_and_the_next_one_answered(
    checkpoint, monkeypatch, capsys, seen
):
    lines = "/image /no/such.png\n/foo\n/image\nWhat?\n"
    assert piped(monkeypatch, lines, checkpoint, *SHORT) == 2
    assert seen == [(1, False)]
    err = capsys.readouterr().err
    assert "PictureError: /no/such.png: no such file" in err
    assert "PromptError: '/foo' is not a command" in err
    assert "PromptError: '/image' is not a command, or lacks its argument" in err


def test_a_turn_that_does_not_fit_is_left_out(checkpoint, monkeypatch, capsys, seen):
    lines = f"What?\n{'x ' * 60}\nAnd?\n"
    assert piped(monkeypatch, lines, checkpoint, "--window", "40", *SHORT) == 2
    assert seen == [(1, False), (3, False), (3, False)]
    assert "context window of 40" in capsys.readouterr().err


def test_a_terminal_is_greeted_and_survives_mistakes(checkpoint, monkeypatch, capsys, seen):
    assert typed(monkeypatch, "^C\n/foo\nWhat?\n", checkpoint, *SHORT) == 0
    assert seen == [(1, False)]
    out, err = capsys.readouterr()
    assert out.startswith("> \n> ")  # Ctrl-C left the line
    assert out.endswith("> \n")  # Ctrl-D ended the session
    assert "/image FILE shows a picture" in err
    assert "no picture yet" in err


def test_a_full_disk_does_not_end_a_conversation(checkpoint, monkeypatch, capsys, seen):
    def full(self, *arguments, **rest):
        with scratch_folder():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    reply = ReferenceSession.reply
    answers = iter([full, reply])
    monkeypatch.setattr(
        ReferenceSession, "reply", lambda *given, **rest: next(answers)(*given, **rest)
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    assert typed(monkeypatch, "What?\nWhat?\n/quit\n", checkpoint, *SHORT) == 0
    err = capsys.readouterr().err
    assert re.search(r"^ScratchError: .*: No space left on device; .*TMPDIR", err, re.MULTILINE)
    assert "answer 3 tokens" in err and seen == [(1, False)]


@pytest.mark.parametrize("word", [1, 3])
def test_ctrl_c_stops_an_answer_and_not_the_session(checkpoint, monkeypatch, capsys, seen, word):
    forward, calls = chat_command.results().out, []

    def press(*args: object, **rest: object) -> None:
        calls.append(args)
        if len(calls) == word + 1:  # the first is what an empty line of `^C` prints
            signal.raise_signal(signal.SIGINT)
        forward(*args, **rest)

    monkeypatch.setattr(chat_command.results(), "out", press)
    endless = ("--greedy", "--device", "cpu", "--max-new-tokens", "500")
    before = signal.getsignal(signal.SIGINT)
    text = "^C\nWhat?\n/quit\n"
    assert typed(monkeypatch, text, checkpoint, *endless) == 0
    assert signal.getsignal(signal.SIGINT) == before
    err = capsys.readouterr().err
    assert f"answer {word} tokens" in err
    assert "cancelled" in err


def test_a_second_ctrl_c_ends_an_answer_at_once():
    with pytest.raises(KeyboardInterrupt), chat_command._interruptible() as cancelled:
        assert not cancelled()
        signal.raise_signal(signal.SIGINT)
        assert cancelled()
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--prompt", " "], "PromptError: --prompt is empty"),
        (["--prompt", "x", "--image", "/no/such.png"], "PictureError: /no/such.png: no such file"),
        (["--prompt", "x", "--greedy", "--seed", "1", "--top-k", "3"], "leave out --top-k, --seed"),
        (["--prompt", "x", "--temperature", "-1"], "temperature is -1.0"),
        (["--prompt", "x", "--top-k", "-1"], "top_k is -1"),
        (["--prompt", "x", "--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["--prompt", "x", "--window", "3"], "window of 3 has room for 0"),
        (["--prompt", "x", "--engine", "local"], "BundleError"),
        (["--prompt", "x", "--device", "abacus"], "expected cpu, mps or cuda"),
    ],
)
def test_what_cannot_be_done_is_one_line(checkpoint, capsys, arguments, problem):
    assert cli.main(["chat", checkpoint, *arguments]) == 2
    out, err = capsys.readouterr()
    assert problem in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not out


def test_as_original_an_empty_prompt_is_answered(checkpoint, capsys, seen):
    asked = ["--prompt", "", "--as-original", "--device", "cpu", "--max-new-tokens", "3"]
    assert cli.main(["chat", checkpoint, *asked, "--top-k", "0", "--top-p", "0"]) == 0
    assert "top-k all, top-p 0" in capsys.readouterr().err
    assert seen == [(1, False)]


def test_an_empty_answer_is_a_turn(checkpoint, monkeypatch, seen):
    """As in the original's context; only what was cancelled before its first word is none."""
    stops = ["eos", "cancelled", "eos"]
    reply = ReferenceSession.reply

    def silent(self, *arguments, **rest):
        answer = reply(self, *arguments, **rest)
        statistics = replace(answer.statistics, stop=stops.pop(0))
        return replace(answer, text="", ids=[], statistics=statistics)

    monkeypatch.setattr(ReferenceSession, "reply", silent)
    assert piped(monkeypatch, "one\ntwo\nthree\n", checkpoint, *SHORT) == 0
    assert [turns for turns, _ in seen] == [1, 3, 3]


def test_a_folder_that_is_no_model(tmp_path, capsys):
    assert cli.main(["chat", str(tmp_path), "--prompt", "x"]) == 2
    assert "no checkpoint" in capsys.readouterr().err


def test_a_decoder_takes_text_only(tmp_path, picture, monkeypatch, capsys, seen):
    source = str(write_checkpoint(tmp_path / "decoder", decoder_only=True))
    assert cli.main(["chat", source, "--prompt", "Hello", *SHORT]) == 0
    assert cli.main(["chat", source, "--image", picture, "--prompt", "Hello", *SHORT]) == 2
    assert "no vision encoder" in capsys.readouterr().err
    assert piped(monkeypatch, f"/image {picture}\nHello\n", source, *SHORT) == 2
    assert seen == [(1, False), (1, False)]


def test_a_limit_of_slices(tmp_path, checkpoint, picture, capsys):
    """The overview alone takes fewer tokens; limits that a model cannot have are refused."""
    sliced, large = str(write_slices_checkpoint(tmp_path / "sliced")), str(tmp_path / "large.png")
    Image.linear_gradient("L").resize((640, 480)).save(large)
    asked = ["--image", large, "--prompt", "What is this?", *SHORT]
    tokens = []
    for limit in ([], ["--max-slices", "1"]):
        assert cli.main(["chat", sliced, *asked, *limit]) == 0
        tokens.append(int(re.findall(r"prompt (\d+) tokens", capsys.readouterr().err)[0]))
    assert tokens[0] - tokens[1] == 2 * (64 + 2) + 2  # two slices and the tags around them
    for source, limit, problem in (
        (sliced, "0", "max_slices is 0"),
        (sliced, "10", "max_slices is 10"),
        (checkpoint, "1", "one square: leave it out"),
    ):
        assert cli.main(["chat", source, *asked, "--max-slices", limit]) == 2
        assert problem in capsys.readouterr().err
    assert cli.main(["chat", sliced, "--web", "--max-slices", "10"]) == 2
    assert "max_slices is 10" in capsys.readouterr().err


def test_progress_is_shown_until_the_first_word(monkeypatch):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80)
    monkeypatch.setattr(conversation, "messages", lambda: console)
    for stage, shown in (("encode", "encoding the picture 3/12"), ("prefill", "the prompt 3/12")):
        with conversation.Waiting() as waiting:
            waiting.update(stage, 3, 12)
        assert shown in screen.getvalue()


def test_control_characters_of_an_answer_do_not_reach_the_terminal():
    assert "a\x1b[2J\x9b\r\n\tb".translate(conversation.CONTROL) == "a[2J\n\tb"


def test_in_a_real_terminal(checkpoint):
    """Ctrl-C stops a long answer, the next one is given, Ctrl-D ends."""
    arguments = [checkpoint, "--greedy", "--device", "cpu", "--max-new-tokens", "100000"]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "convert.cli", "chat", *arguments],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, start_new_session=True,
        preexec_fn=_take_terminal, env=os.environ | {"TERM": "dumb"},
    )  # fmt: skip
    os.close(theirs)
    try:
        _expect(ours, "no picture yet", "> ")
        os.write(ours, b"What colour is the shape?\n")
        _expect(ours, r"\n", r"\S{8}")  # the answer has begun
        os.write(ours, b"\x03")
        _expect(ours, "cancelled", "> ")
        os.write(ours, b"\x04")
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _expect(terminal: int, *patterns: str) -> None:
    """Reads until the patterns have come, one after the other."""
    seen, deadline = "", time.monotonic() + 120
    for pattern in patterns:
        while not (found := re.search(pattern, seen)):
            left = max(deadline - time.monotonic(), 0)
            assert select.select([terminal], [], [], left)[0], f"no {pattern!r} in {seen!r}"
            seen += os.read(terminal, 4096).decode(errors="replace")
        seen = seen[found.end() :]
