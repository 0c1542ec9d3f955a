"""bench: what it asks, what it makes of the answers' times, and what it shows."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from convert import cli
from convert.bundle.manifest import Bundle
from convert.bundle.plan import Recipe, make_plan
from convert.checkpoint.config import CONFIGS, ModelConfig
from convert.checkpoint.synth_tokenizer import generate_tokenizer
from runtime.bench import measure as bench
from runtime.bench.inputs import (
    FIRST_QUESTION,
    SECOND_QUESTION,
    ask,
    random_picture,
    text_of_length,
)
from runtime.bench.measure import DECODE_STEPS, DecodeReads, Workload, measure
from runtime.bench.runners import Asked, MachineSpeed
from runtime.engine_client import places
from runtime.inputs.prompt import Tokenizer
from tests.support import engine_stand_in
from tests.support.bundles import write_bundle
from tests.support.engine_stand_in import PEAK_RSS_BYTES, PICTURE_TOKENS
from tests.support.tiny_config import tiny_config
from tests.support.tiny_tokenizer import tokenizer_model

ROOT = Path(__file__).resolve().parents[3]
REAL = ROOT / "../shared/model/minicpm-v/tokenizer.model"
LIMIT, SHARE = "decode_limit_tok_s", "decode_share_of_limit"
OF_PICTURES = {"image_encode_ms", "ttft_first_ms", "ttft_second_ms"}
OF_PREFILL = {"prefill_96_tok_s", "prefill_256_tok_s", "prefill_1024_tok_s"}


@dataclass
class FakeRunner:
    """Notes what is done; every time follows from a rate."""

    answer_steps: int = 1000  # after which an answer ends
    bandwidth: float | None = 8e9  # bytes/s

    def __post_init__(self) -> None:
        self.done: list[str] = []

    def load(self) -> float:
        self.done.append("load")
        return float(self.done.count("load"))

    def ask(self, text: str, picture: Image.Image | None, max_new_tokens: int) -> Asked:
        steps = min(max_new_tokens - 1, self.answer_steps)
        self.done.append("picture" if picture else f"ask {max_new_tokens}")
        return Asked(
            total_ms=70.0,
            encode_ms=50.0 if picture else 0.0,
            prefill_ms=100.0,
            decode_ms=steps * 5.0,
            prompt_tokens=30,
            reused_tokens=10,
            decode_steps=steps,
        )

    def forget(self) -> None:
        self.done.append("forget")

    def machine(self) -> MachineSpeed | None:
        self.done.append("read")
        if self.bandwidth is None:
            return None
        return MachineSpeed(read_bytes_s=self.bandwidth, launch_us=2.0)

    def peak_rss_bytes(self) -> int | None:
        self.done.append("peak")
        return 123


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("bench") / "tokenizer.model"
    path.write_bytes(tokenizer_model())
    return Tokenizer(path)


def _work(tokenizer: Tokenizer | None, **changes: Any) -> Workload:
    # With 30 tokens before the decoded ones, and half of 64 of those: 10 MB.
    reads = DecodeReads(weights_bytes=10**7 - 62 * 10**5, cache_token_bytes=10**5)
    settings = {"pictures": {1: (640, 640)}, "reads": reads, "window": 1024, "rounds": 2}
    return Workload(tokenizer=tokenizer, **(settings | changes))


@pytest.mark.parametrize("tokens", [96, 256, 1024])
@pytest.mark.parametrize("which", ["tiny", "demo", "generated", "real"])
def test_a_text_of_a_given_length(
    which: str, tokens: int, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    if which == "generated":
        (tmp_path / "model").write_bytes(generate_tokenizer(30_000))
    paths = {"demo": CONFIGS / "demo" / "tokenizer.model", "real": REAL}
    path = paths.get(which, tmp_path / "model")
    if not path.is_file() and which != "tiny":
        pytest.skip("this tokenizer is not at hand")
    chosen = tokenizer if which == "tiny" else Tokenizer(path)
    text = text_of_length(chosen, tokens)
    assert len(chosen.prompt(ask(text), 0).ids) == tokens
    assert text == text_of_length(chosen, tokens)


def test_pictures_differ() -> None:
    pictures = [random_picture(seed).tobytes() for seed in (0, 1, 1)]
    assert pictures[0] != pictures[1]
    assert pictures[1] == pictures[2]


@pytest.mark.parametrize("untied", [False, True])
def test_bytes_of_a_decoded_token(untied: bool) -> None:
    config = ModelConfig.from_json(tiny_config())
    plan = make_plan(config, untied, Recipe.load("q4f16_1"))
    width, hidden, rows = 256, 320, math.ceil(501 / 16) * 16  # whole tiles
    layer = 4 * width * width + 3 * width * hidden
    q4 = (2 * layer + rows * width) * (4 + 16 / 32) / 8  # a float16 scale per 32 weights
    norms = 5 * width * 2
    reads = DecodeReads.of(plan, config.decoder)
    assert reads.weights_bytes == q4 + norms
    assert reads.cache_token_bytes == 2 * 2 * width * 2  # layers, keys and values, float16
    assert reads.bytes_after(10) == q4 + norms + 10 * reads.cache_token_bytes


def test_the_rounds(tokenizer: Tokenizer) -> None:
    runner = FakeRunner()
    heard: list[tuple[int, int]] = []
    result = measure(runner, _work(tokenizer), lambda _, done, total: heard.append((done, total)))
    one = ["forget", "picture", "picture", *["forget", "ask 1"] * 3]
    one += ["read", f"ask {DECODE_STEPS + 1}", "read"]
    assert runner.done == ["load", "load", "picture", "ask 2", "peak", *one * 2]
    assert heard[-1] == (heard[-1][1],) * 2
    assert [done for done, _ in heard] == list(range(len(heard)))
    medians = {name: figure.median for name, figure in result.figures.items()}
    assert medians == {
        "load_ms": 1.5,
        "image_encode_ms": 50.0,
        "ttft_first_ms": 70.0,
        "ttft_second_ms": 70.0,
        "prefill_96_tok_s": 200.0,
        "prefill_256_tok_s": 200.0,
        "prefill_1024_tok_s": 200.0,
        "decode_tok_s": 200.0,
        "launch_us": 2.0,
        "read_bytes_s": 8e9,
        "decode_limit_tok_s": 800.0,
        "decode_share_of_limit": 0.25,
    }
    assert result.figures["load_ms"].to_json() == {
        "median": 1.5, "min": 1.0, "max": 2.0, "values": [1.0, 2.0],
    }  # fmt: skip
    assert result.tokens["decode_tok_s"] == DECODE_STEPS
    assert result.tokens["decode_limit_tok_s"] == 30 + DECODE_STEPS / 2
    assert result.tokens["prefill_256_tok_s"] == 20
    assert result.peak_rss_bytes == 123


def test_short_answers_are_added_up(tokenizer: Tokenizer) -> None:
    runner = FakeRunner(answer_steps=10)
    result = measure(runner, _work(tokenizer, rounds=1), lambda *_: None)
    asked = [done for done in runner.done if done.startswith("ask")][-7:]
    assert asked == ["ask 65", "ask 55", "ask 45", "ask 35", "ask 25", "ask 15", "ask 5"]
    assert result.tokens["decode_tok_s"] == DECODE_STEPS
    assert result.figures["decode_tok_s"].median == 200.0


@pytest.mark.parametrize(
    ("runner", "changes", "missing"),
    [
        (FakeRunner(answer_steps=0), {}, {"decode_tok_s", SHARE}),
        (FakeRunner(bandwidth=None), {}, {"launch_us", "read_bytes_s", LIMIT, SHARE}),
        (FakeRunner(), {"reads": None}, {LIMIT, SHARE}),
        (FakeRunner(), {"pictures": {}}, OF_PICTURES),
        (FakeRunner(), {"window": 1023}, {"prefill_1024_tok_s"}),
        (FakeRunner(), {"window": 50}, OF_PREFILL),
        (FakeRunner(), {"tokenizer": None}, {*OF_PICTURES, *OF_PREFILL, "decode_tok_s", SHARE}),
    ],
)
def test_what_cannot_be_measured_is_left_out(
    runner: FakeRunner, changes: dict[str, Any], missing: set[str], tokenizer: Tokenizer
) -> None:
    whole = set(measure(FakeRunner(), _work(tokenizer), lambda *_: None).figures)
    work = _work(**({"tokenizer": tokenizer} | changes))
    heard: list[tuple[int, int]] = []
    found = set(measure(runner, work, lambda _, done, total: heard.append((done, total))).figures)
    assert whole - found == missing
    assert heard[-1][0] == heard[-1][1]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bench") / "bundle")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts the stand-in in the engine's place; it dies when it is asked for what is named."""

    def install(*dies_at: str) -> None:
        # As a script: the package of the tests imports much before it.
        command = ["env", f"PYTHONPATH={ROOT}", sys.executable, engine_stand_in.__file__]
        command += dies_at
        monkeypatch.setattr(places, "engine_command", lambda *_, **__: command)

    install()
    return install


def test_an_engine_s_figures(
    bundle: Path, engine: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert cli.main(["bench", str(bundle), "--json", "--rounds", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    report = json.loads(lines[0])
    figures = report["figures"]
    words = len(FIRST_QUESTION.split())
    assert figures["load_ms"]["values"] == [12.5, 12.5]
    assert figures["image_encode_ms"]["values"] == [400.0, 400.0]
    assert figures["ttft_first_ms"]["tokens"] == words + PICTURE_TOKENS
    assert figures["ttft_second_ms"]["tokens"] < PICTURE_TOKENS
    assert figures["prefill_96_tok_s"]["median"] == 500.0
    assert figures["decode_tok_s"] | {"values": []} == {
        "median": 100.0, "min": 100.0, "max": 100.0, "values": [], "tokens": DECODE_STEPS,
    }  # fmt: skip
    opened = Bundle.open(bundle)
    reads = DecodeReads.of(opened.plan, opened.config.decoder)
    assert report["decode_reads"] == asdict(reads)
    assert figures["read_bytes_s"]["values"] == [2e9, 2e9]
    nbytes = reads.bytes_after(figures["decode_limit_tok_s"]["tokens"])
    assert nbytes > reads.weights_bytes
    assert figures["decode_share_of_limit"]["median"] == pytest.approx(100 * nbytes / 2e9, 2e-3)
    assert report["peak_rss_bytes"] == PEAK_RSS_BYTES
    assert report["device"]["threads"] == 2
    assert report["quantization"] == "small"
    assert report["window"] == json.loads((CONFIGS / "generation.json").read_text())["window"]


def test_an_engine_s_table(
    bundle: Path, engine: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert cli.main(["bench", str(bundle), "--window", "300", "--rounds", "1"]) == 0
    shown = capsys.readouterr().out
    rows = {line[:28].strip(): line[28:].split() for line in shown.splitlines()}
    assert "a processor of no make; threads: 2" in shown
    assert rows["encode a picture"] == ["400.0", "400.0", "400.0", "ms"]
    assert rows["prefill 256"][:4] == ["500.0", "500.0", "500.0", "tok/s"]
    assert rows["prefill 1024"] == ["-", "-", "-", "tok/s"]
    assert rows["decode"] == ["100.0", "100.0", "100.0", "tok/s", "64", "tokens"]
    assert rows["memory read"][:4] == ["2.0", "2.0", "2.0", "GB/s"]
    assert "3.00 MiB at most" in shown


def test_a_decoder_without_a_tokenizer(
    tmp_path: Path, engine: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_bundle(tmp_path / "bundle", decoder_only=True, tokenizer=False)
    capsys.readouterr()
    assert cli.main(["bench", str(folder), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report["figures"]) == {"load_ms", "launch_us", "read_bytes_s", "decode_limit_tok_s"}
    assert report["peak_rss_bytes"] is None


def test_the_reference(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "PREFILL_LENGTHS", (40,))
    monkeypatch.setattr(bench, "DECODE_STEPS", 3)
    arguments = ["bench", str(bundle), "--engine", "reference", "--rounds", "1", "--json"]
    capsys.readouterr()
    assert cli.main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    figures = report["figures"]
    assert set(figures) == {
        "load_ms", "image_encode_ms", "ttft_first_ms", "ttft_second_ms", "prefill_40_tok_s",
        "decode_tok_s",
    }  # fmt: skip
    assert all(figure["median"] > 0 for figure in figures.values())
    assert figures["prefill_40_tok_s"]["tokens"] == 40
    # The second question finds the picture in the cache: its 9 tokens and what stands around them.
    tokenizer = Tokenizer(bundle / "tokenizer.model")
    first, second = (tokenizer.prompt(ask(q), 9) for q in (FIRST_QUESTION, SECOND_QUESTION))
    shared = next(
        i for i, pair in enumerate(zip(first.ids, second.ids, strict=False)) if len(set(pair)) > 1
    )
    assert figures["ttft_first_ms"]["tokens"] == len(first.ids)
    assert figures["ttft_second_ms"]["tokens"] == len(second.ids) - shared
    assert shared > 9
    assert report["decode_reads"] is None
    assert report["device"]["dtype"] == "float32"
    assert cli.main(arguments[:-1]) == 0
    assert "PyTorch, float32" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--rounds", "0"], "--rounds is 0"),
        (["--threads", "-1"], "threads is -1"),
        (["--window", "0"], "--window is 0"),
        (["--max-slices", "3"], "this one resizes every picture to one square"),
        (["--engine", "qemu"], "holds no program for target 'android-arm64'"),
    ],
)
def test_refusals(
    bundle: Path, arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert cli.main(["bench", str(bundle), *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert problem in lines[0]


def test_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", str(tmp_path)]) == 2
    assert "bundle.json" in capsys.readouterr().err


@pytest.mark.parametrize("op", ["load", "image", "chat", "bandwidth"])
def test_an_engine_that_dies(
    op: str, bundle: Path, engine: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    engine(op)
    capsys.readouterr()
    assert cli.main(["bench", str(bundle)]) == 2
    captured = capsys.readouterr()
    assert "exit code 3): no more" in captured.err
    assert not captured.out
