"""How an answer is generated, as a user asks for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeGuard

from quantize.errors import ConfigError
from runtime.inputs.logprobs import LIMIT


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How an answer is generated; the fields are named as in `transformers`."""

    max_new_tokens: int
    do_sample: bool = False  # otherwise greedy, or beam search
    temperature: float = 1.0
    top_k: int | None = None  # None: no limit, and so is 0, which becomes None
    top_p: float = 1.0  # 1.0: no limit; 0.0: the likeliest alone
    repetition_penalty: float = 1.0  # of generated tokens; 1.0: none
    num_beams: int = 1
    seed: int | None = None  # None: another answer each time
    stop: tuple[str, ...] = ()  # texts that end the answer; it ends before them
    top_logprobs: int | None = None  # likeliest tokens to tell of; None: no logprobs at all

    def __post_init__(self) -> None:
        """Checks every value.

        Raises:
            ConfigError: a value out of its range, or a combination that means nothing.
        """
        for name in ("max_new_tokens", "num_beams"):
            _check(self, name, _is_int(getattr(self, name), 1), "an integer of at least 1")
        top_k = self.top_k is None or _is_int(self.top_k, 0)
        _check(self, "top_k", top_k, "an integer of at least 1, or 0 for no limit")
        object.__setattr__(self, "top_k", self.top_k or None)
        seed = self.seed is None or (_is_int(self.seed, 0) and self.seed < 2**63)
        _check(self, "seed", seed, "an integer from 0 to 2^63 - 1")
        hint = "a number above 0 (for the likeliest answer choose greedy)"
        _check(self, "temperature", _is_positive(self.temperature), hint)
        _check(self, "repetition_penalty", _is_positive(self.repetition_penalty), "above 0")
        _check(self, "top_p", _is_share(self.top_p), "a number from 0 to 1")
        if self.do_sample and self.num_beams > 1:
            raise ConfigError(
                f"num_beams is {self.num_beams} while sampling; choose beams or sampling, not both"
            )
        stop = isinstance(self.stop, tuple) and all(map(_is_text, self.stop))
        _check(self, "stop", stop, "a tuple of texts that are not empty")
        if self.stop and self.num_beams > 1:
            raise ConfigError("stop texts end one answer, but beam search follows several at once")
        told = self.top_logprobs is None or (
            _is_int(self.top_logprobs, 0) and self.top_logprobs <= LIMIT
        )
        _check(self, "top_logprobs", told, f"an integer from 0 to {LIMIT}")
        if self.top_logprobs is not None and self.num_beams > 1:
            raise ConfigError("logprobs are of one answer, but beam search follows several at once")


def _check(options: GenerationOptions, name: str, right: bool, expected: str) -> None:
    if not right:
        raise ConfigError(f"{name} is {getattr(options, name)!r}; expected {expected}")


def _is_int(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_text(value: object) -> bool:
    if not isinstance(value, str) or not value:
        return False
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_positive(value: object) -> bool:
    return _is_number(value) and math.isfinite(value) and value > 0


def _is_share(value: object) -> bool:
    return _is_number(value) and 0 <= value <= 1
