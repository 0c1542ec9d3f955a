"""Which build of llama.cpp is compared with: the fastest that works."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from quantize.errors import ToolkitError
from tests.bench import llama_build
from tests.bench.llama_build import Variant

AFTER, STEPS = 192, 64  # tokens before decoding, and decoded
PREFILL = (96, 256)  # tokens
_ROUNDS = 3  # after one to warm up


class Asked(Protocol):
    """What answers requests, see `tests.bench.llama_child`."""

    def ask(self, op: str, **fields: int) -> dict[str, Any]:
        """Sends a request and waits for the answer."""


Start = Callable[[Variant], AbstractContextManager[Asked]]


@dataclass
class Tried:
    """What became of a variant."""

    variant: Variant
    problem: str | None = None  # it is not built, or it crashed
    ms: dict[str, float] = field(default_factory=dict)  # medians, by kind of work

    def __str__(self) -> str:
        if self.problem is not None:
            return f"{self.variant.name}: {self.problem}"
        speeds = ", ".join(f"{kind} {speed:.1f}" for kind, speed in self.tok_s.items())
        return f"{self.variant.name}: {speeds} tok/s"

    @property
    def tok_s(self) -> dict[str, float]:
        """Tokens per second, by kind of work."""
        return {kind: tokens / self.ms[kind] * 1000 for kind, tokens in _work().items()}

    def to_json(self) -> dict[str, Any]:
        """Returns all that is known."""
        about = {"name": self.variant.name, "cmake": self.variant.cmake}
        return about | ({"problem": self.problem} if self.problem else {"tok_s": self.tok_s})


def try_all(
    variants: Sequence[Variant], start: Start, clock: str, told: Callable[[str], object]
) -> list[Tried]:
    """Lets every variant do the work of a round, and says what became of it.

    Args:
        variants: what to try.
        start: starts one; an error, then or later, is its own problem.
        clock: which of an answer's times counts.
        told: hears of each.
    """
    found = []
    for variant in variants:
        tried = Tried(variant)
        try:
            with start(variant) as llama:
                tried.ms = _measure(llama, clock)
        except ToolkitError as error:
            tried.problem = str(error)
        told(f"llama.cpp, {tried}")
        found.append(tried)
    return found


def fastest(found: Sequence[Tried]) -> Variant:
    """Returns the variant that needs the least time for all kinds of work together.

    Raises:
        ToolkitError: none works; says what became of each.
    """
    working = [tried for tried in found if tried.problem is None]
    if not working:
        problems = "; ".join(map(str, found))
        raise ToolkitError(
            f"no build of llama.cpp {llama_build.VERSION} works here: {problems}. To build them "
            f"again, remove {llama_build.folder()}"
        )
    return min(working, key=lambda tried: sum(tried.ms.values())).variant


def _work() -> dict[str, int]:
    """Returns tokens by kind of work."""
    return {**{f"prefill {n}": n for n in PREFILL}, "decode": STEPS}


def _measure(llama: Asked, clock: str) -> dict[str, float]:
    llama.ask("load")
    times: dict[str, list[float]] = {kind: [] for kind in _work()}
    for _ in range(1 + _ROUNDS):
        for n in PREFILL:
            times[f"prefill {n}"].append(llama.ask("prefill", tokens=n)[clock])
        times["decode"].append(llama.ask("decode", after=AFTER, steps=STEPS)[clock])
    return {kind: statistics.median(values[1:]) for kind, values in times.items()}
