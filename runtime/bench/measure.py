"""The rounds of a benchmark: each measures everything, so a slow moment affects all alike."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from convert.bundle.kv_cache import find_kv_format
from convert.bundle.plan import Plan
from convert.checkpoint.config import DecoderConfig
from convert.support.progress import Progress
from runtime.bench.inputs import (
    FIRST_QUESTION,
    LONG_ANSWER,
    SECOND_QUESTION,
    random_picture,
    text_of_length,
)
from runtime.bench.runners import Asked, MachineSpeed, Runner
from runtime.inputs.prompt import Tokenizer
from runtime.inputs.slices import Size

PREFILL_LENGTHS = (96, 256, 1024)  # tokens
DECODE_STEPS = 64
_MOST_ROUNDS = 1000  # that show pictures of their own
_MOST_ANSWERS = 32  # a model may end its answers long before they have DECODE_STEPS tokens


@dataclass(frozen=True)
class Figure:
    """One measured quantity: a value per round."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle of the values."""
        return statistics.median(self.values)

    def to_json(self) -> dict[str, Any]:
        """Returns median, spread and values."""
        figures = {"median": self.median, "min": min(self.values), "max": max(self.values)}
        shown: dict[str, Any] = {name: _short(value) for name, value in figures.items()}
        return shown | {"values": [_short(value) for value in self.values]}


@dataclass(frozen=True, kw_only=True)
class DecodeReads:
    """The bytes that decoding one token reads from memory."""

    weights_bytes: int  # of the layers and the head
    cache_token_bytes: int  # for each token that it sees

    @staticmethod
    def of(plan: Plan, config: DecoderConfig) -> DecodeReads:
        """Returns the reads of a bundle's decoding step."""
        head = "llm.head" if any(t.name == "llm.head" for t in plan.tensors) else "llm.embed"
        names = ("llm.layers.", "llm.norm.", head)
        return DecodeReads(
            weights_bytes=sum(t.nbytes for t in plan.tensors if t.name.startswith(names)),
            cache_token_bytes=find_kv_format(plan.kv).token_bytes(config),
        )

    def bytes_after(self, tokens: float) -> float:
        """Returns the bytes of a token that sees `tokens`."""
        return self.weights_bytes + tokens * self.cache_token_bytes


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is measured, and how often."""

    pictures: Mapping[int, Size]  # sizes by the number of images, see `picture_sizes`; or none
    tokenizer: Tokenizer | None  # None: nothing can be asked
    reads: DecodeReads | None  # None: the bandwidth limit is not measured
    window: int  # tokens; longer prompts are left out
    rounds: int


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """The results; figures that could not be measured are left out."""

    figures: Mapping[str, Figure]  # by names that end with their unit
    tokens: Mapping[str, int]  # number of tokens or values behind a figure, by its name
    peak_rss_bytes: int | None


def measure(runner: Runner, work: Workload, progress: Progress) -> Measurements:
    """Loads once per round, warms up, then runs the rounds.

    Raises:
        ToolkitError: the runner failed.
    """
    found = _Found()
    lengths = [n for n in PREFILL_LENGTHS if n <= work.window]
    texts = {}
    if work.tokenizer is not None:
        texts = {n: text_of_length(work.tokenizer, n) for n in lengths}
    steps = _Steps(progress, work.rounds + 1 + work.rounds * (3 + len(texts)))
    for _ in range(work.rounds):
        found.add("load_ms", runner.load())
        steps.next()
    can_ask = work.tokenizer is not None
    peak = _warm_up(runner, work, texts) if can_ask else None
    steps.next()
    for i in range(work.rounds):
        if can_ask and work.pictures:
            _ask_about_pictures(runner, i + 1, work.pictures, found)
        steps.next()
        for tokens, text in texts.items():
            _prefill(runner, tokens, text, found)
            steps.next()
        before = runner.machine()
        steps.next()
        if can_ask:
            _decode(runner, work.window, found)
        _limit(before, runner.machine(), work.reads, found)
        steps.next()
    figures = {name: Figure(tuple(values)) for name, values in found.values.items()}
    return Measurements(figures=figures, tokens=found.tokens, peak_rss_bytes=peak)


@dataclass
class _Found:
    """Values by figure, as they come."""

    values: dict[str, list[float]] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    seen: float = 0  # tokens by a decoded one, in the last round's mean

    def add(self, name: str, value: float, tokens: int | None = None) -> None:
        """Adds a round's value, and the number of tokens behind it."""
        self.values.setdefault(name, []).append(value)
        if tokens is not None:
            self.tokens[name] = tokens


class _Steps:
    """Counts the completed steps."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._done, self._total = progress, -1, total
        self.next()

    def next(self) -> None:
        """Reports one more completed step."""
        self._done += 1
        self._progress("measure", self._done, self._total)


def _short(value: float) -> float:
    """Rounds to six significant digits."""
    return float(f"{value:.6g}")


def _warm_up(runner: Runner, work: Workload, texts: Mapping[int, str]) -> int | None:
    """Runs the workload once; returns its peak memory.

    Measured now, because later it would include the bandwidth test's buffer.
    """
    if work.pictures:
        runner.ask(FIRST_QUESTION, random_picture(0, work.pictures[max(work.pictures)]), 1)
    runner.ask(texts[max(texts)] if texts else LONG_ANSWER, None, 2)
    return runner.peak_rss_bytes()


def encode_figure(images: int) -> str:
    """Returns the name of the time that a picture of so many images takes to encode."""
    return "image_encode_ms" if images == 1 else f"image_encode_{images}_ms"


def _ask_about_pictures(
    runner: Runner, seed: int, pictures: Mapping[int, Size], found: _Found
) -> None:
    """Asks about a new picture of each size, and about the largest once more."""
    for images in sorted(pictures):
        # Nothing of one size is seen in another, where an engine might remember it.
        picture = random_picture(seed + _MOST_ROUNDS * (images - 1), pictures[images])
        runner.forget()
        first = runner.ask(FIRST_QUESTION, picture, 1)
        found.add(encode_figure(images), first.encode_ms)
        if images < max(pictures):
            continue
        _ask_again(runner, picture, first, found)


def _ask_again(runner: Runner, picture: Image.Image, first: Asked, found: _Found) -> None:
    second = runner.ask(SECOND_QUESTION, picture, 1)
    found.add("ttft_first_ms", first.total_ms, first.prefilled_tokens)
    found.add("ttft_second_ms", second.total_ms, second.prefilled_tokens)


def _prefill(runner: Runner, tokens: int, text: str, found: _Found) -> None:
    runner.forget()
    asked = runner.ask(text, None, 1)
    rate = asked.prefilled_tokens / asked.prefill_ms * 1000
    found.add(f"prefill_{tokens}_tok_s", rate, asked.prefilled_tokens)


def _decode(runner: Runner, window: int, found: _Found) -> None:
    """Decodes until enough steps were made, in several answers if they end early."""
    answers: list[Asked] = []
    done = 0
    while done < DECODE_STEPS and len(answers) < _MOST_ANSWERS:
        answers.append(runner.ask(LONG_ANSWER, None, DECODE_STEPS - done + 1))
        done += answers[-1].decode_steps
    if done > 0:
        ms = sum(asked.decode_ms for asked in answers)
        found.add("decode_tok_s", done / ms * 1000, done)
        seen = sum(a.decode_steps * (a.prompt_tokens + a.decode_steps / 2) for a in answers)
        found.seen = min(seen / done, window)


def _limit(
    before: MachineSpeed | None,
    after: MachineSpeed | None,
    reads: DecodeReads | None,
    found: _Found,
) -> None:
    """Compares this round's decoding speed with the bandwidth just before and after it."""
    if before is None or after is None:
        return
    found.add("launch_us", (before.launch_us + after.launch_us) / 2)
    bandwidth = (before.read_bytes_s + after.read_bytes_s) / 2
    found.add("read_bytes_s", bandwidth)
    if reads is None:
        return
    limit = bandwidth / reads.bytes_after(found.seen)
    found.add("decode_limit_tok_s", limit, round(found.seen))
    if "decode_tok_s" in found.values:
        found.add("decode_share_of_limit", found.values["decode_tok_s"][-1] / limit)
