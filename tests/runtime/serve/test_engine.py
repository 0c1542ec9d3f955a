"""`minicpmv serve` with its engine: the demo's answers, and what happens when either side ends."""

from __future__ import annotations

import base64
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.runtime.serve.client import until_requests
from tests.support.web import ROOT, WebServer

SAMPLE = ROOT / "configs" / "demo" / "sample.png"
COMMAND = (sys.executable, "-m", "convert.cli", "serve", "--port", "0", "--threads", "1")


def client_of(server: WebServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.address, api_key="none", max_retries=0, timeout=60)


def ask(server: WebServer, content: Any, **more: Any) -> Any:
    client = client_of(server)
    model = client.models.list().data[0].id
    messages: Any = [{"role": "user", "content": content}]
    return client.chat.completions.create(
        model=model, messages=messages, **{"temperature": 0} | more
    )


def sample(question: str) -> list[dict[str, Any]]:
    url = "data:image/png;base64," + base64.b64encode(SAMPLE.read_bytes()).decode()
    return [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": question},
    ]


@pytest.fixture(scope="module")
def demo_server(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    with WebServer((*COMMAND, str(demo), "--name", "demo"), tmp_path_factory.mktemp("home")) as s:
        yield s


@pytest.fixture(scope="module")
def tiny_server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    """Its model is random: it speaks without end."""
    with WebServer((*COMMAND, str(bundle)), tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.mark.parametrize(
    ("question", "expected"),
    [("What colour is the shape?", "Red."), ("这个图形是什么颜色？", "红色。")],
)
@pytest.mark.parametrize("stream", [False, True])
def test_the_demo_sees(demo_server: WebServer, question: str, expected: str, stream: bool) -> None:
    answer = ask(demo_server, sample(question), stream=stream)
    if stream:
        said = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
    else:
        said = answer.choices[0].message.content
        assert answer.model == "demo"
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage.prompt_tokens > 66
        assert answer.usage.completion_tokens > 0
    assert said == expected


def test_a_second_question_reuses_the_first(demo_server: WebServer) -> None:
    client = client_of(demo_server)
    messages: list[Any] = [{"role": "user", "content": sample("What colour is the shape?")}]
    first = client.chat.completions.create(model="demo", messages=messages, temperature=0)
    messages += [first.choices[0].message, {"role": "user", "content": "What shape is it?"}]
    second = client.chat.completions.create(model="demo", messages=messages, temperature=0)
    assert second.choices[0].message.content == "A star."
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert cached >= first.usage.prompt_tokens - 3


def test_an_answer_ends_where_it_is_told_to(demo_server: WebServer) -> None:
    whole = ask(demo_server, sample("Describe the picture.")).choices[0]
    text = whole.message.content
    assert whole.finish_reason == "stop"
    cut = ask(demo_server, sample("Describe the picture."), max_tokens=2).choices[0]
    assert cut.finish_reason == "length"
    assert text.startswith(cut.message.content) and len(cut.message.content) < len(text)
    word = text.split()[1]
    stopped = ask(demo_server, sample("Describe the picture."), stop=[word]).choices[0]
    assert stopped.finish_reason == "stop"
    assert stopped.message.content == text.partition(word)[0].strip()


def test_the_same_seed_gives_the_same_answer(tiny_server: WebServer) -> None:
    said = [
        ask(tiny_server, "hello", temperature=2, seed=seed, max_tokens=12)
        .choices[0]
        .message.content
        for seed in (1, 1, 2)
    ]
    assert said[0] == said[1] != said[2]


def test_a_prompt_longer_than_the_window(tiny_server: WebServer) -> None:
    with pytest.raises(openai.BadRequestError, match="window of 1024") as caught:
        ask(tiny_server, "a b c d " * 2000)
    assert caught.value.code == "prompt_too_long"


def speak(server: WebServer) -> Any:
    """Begins an answer that has no end of its own: what was said becomes likelier than EOS."""
    likelier = {"repetition_penalty": 0.5}
    stream = ask(server, "hello", stream=True, max_tokens=100_000, extra_body=likelier)
    while not next(stream).choices[0].delta.content:
        pass
    return stream


def test_an_engine_that_is_killed_is_started_again(tiny_server: WebServer) -> None:
    stream = speak(tiny_server)
    (engine,) = tiny_server.children
    os.kill(engine, signal.SIGKILL)
    with pytest.raises(openai.APIError, match="signal 9"):
        for _ in stream:
            pass
    answer = ask(tiny_server, "hello", max_tokens=3)
    assert answer.usage.completion_tokens == 3
    assert tiny_server.children != [engine]


def test_an_engine_that_is_killed_while_idle_is_not_missed(tiny_server: WebServer) -> None:
    for _ in range(3):
        assert ask(tiny_server, "hello", max_tokens=3).usage.completion_tokens == 3
        for engine in tiny_server.children:
            os.kill(engine, signal.SIGKILL)
    assert ask(tiny_server, "hello", max_tokens=3).usage.completion_tokens == 3


def test_logprobs_are_of_the_answer(demo_server: WebServer) -> None:
    question = sample("What colour is the shape?")
    answer = ask(demo_server, question, logprobs=True, top_logprobs=5)
    steps = answer.choices[0].logprobs.content
    assert len(steps) == answer.usage.completion_tokens
    said = b"".join(bytes(step.bytes) for step in steps).decode().strip()
    assert said == answer.choices[0].message.content == "Red."
    for step in steps:  # greedy, and sure of it
        assert (step.token, step.logprob) == (
            step.top_logprobs[0].token,
            step.top_logprobs[0].logprob,
        )
        assert -0.5 < step.logprob <= 0 and len(step.top_logprobs) == 5
    chunks = list(ask(demo_server, question, logprobs=True, top_logprobs=5, stream=True))
    streamed = [c.choices[0].logprobs.content for c in chunks if c.choices[0].logprobs]
    assert [step.token for part in streamed for step in part] == [step.token for step in steps]


def test_a_client_that_goes_frees_the_engine(tiny_server: WebServer) -> None:
    speak(tiny_server).close()
    answer = ask(tiny_server, "hello", max_tokens=3)
    assert answer.usage.completion_tokens == 3
    until_requests(tiny_server, 0)


def test_ctrl_c_leaves_nothing_behind(bundle: Path, tmp_path: Path) -> None:
    with WebServer((*COMMAND, str(bundle)), tmp_path) as server:
        (engine,) = server.children
        stream = speak(server)
        assert server.interrupt() == 0
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)
    assert not Path(f"/proc/{engine}").exists()


def test_a_limit_of_slices_for_a_model_without(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from convert import cli

    assert cli.main(["serve", str(bundle), "--port", "0", "--max-slices", "1"]) == 2
    assert "one square: leave it out" in capsys.readouterr().err


def test_errors_of_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from convert import cli

    monkeypatch.delenv("MINICPMV_API_KEY", raising=False)
    for arguments, expected in (
        (["--port", "70000"], "--port is 70000"),
        (["--queue", "-1"], "--queue is -1"),
        (["--host", "0.0.0.0"], "set an API key (--api-key-file)"),
        (["--host", "nowhere"], "expected an address"),
        (["--api-key", "schlüssel"], "not ASCII"),
        (["--cors", "*"], "--cors is '*'; expected the origin of a page"),
        ([], "nothing"),
    ):
        assert cli.main(["serve", str(tmp_path / "nothing"), *arguments]) == 2
        said = capsys.readouterr().err.strip()
        assert expected in said and "\n" not in said
