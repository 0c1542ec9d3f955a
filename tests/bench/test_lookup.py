"""Answers with drafts and without take turns, and have the same tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest

from quantize.errors import ToolkitError
from runtime.engine_client.client import EngineAnswer
from runtime.engine_client.protocol import Field
from tests.bench.lookup import KINDS, NOTHING_MATCHES, Side, turns


class Stand:
    """An engine whose answers have a given number of steps, 2 ms each; drafts save a half."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self.asked: list[Mapping[str, Any]] = []

    def chat(self, _: object, *, options: Mapping[str, Any], **__: object) -> EngineAnswer:
        self.asked.append(options)
        accepted = self._steps // 2 if options[Field.LOOKUP] else 0
        statistics = {
            Field.DECODE_STEPS: self._steps,
            Field.DRAFTED_TOKENS: 2 * accepted,
            Field.ACCEPTED_TOKENS: accepted,
            Field.DECODE_MS: 2.0 * (self._steps - accepted),
        }
        return EngineAnswer("", [], "length", statistics)


def sides(engine: Stand) -> list[Side]:
    return [Side(cast(Any, engine), "text", 9, None, lookup) for lookup in (True, False)]


def test_both_sides_give_the_same_answer() -> None:
    engine = Stand(8)
    on, off = sides(engine)
    assert [side.tok_s(NOTHING_MATCHES, 7) for side in (on, off)] == [1000, 500]
    assert [dict(asked) for asked in engine.asked] == [
        {"seed": 7, **KINDS[NOTHING_MATCHES], Field.LOOKUP: lookup} for lookup in (True, False)
    ]
    assert on.counts[NOTHING_MATCHES] == {
        Field.DECODE_STEPS: 8, Field.DRAFTED_TOKENS: 8, Field.ACCEPTED_TOKENS: 4,
    }  # fmt: skip


def test_neither_side_is_always_the_first() -> None:
    on, off = both = sides(Stand(8))
    assert [turns(both, i)[0] for i in range(3)] == [off, on, off]


def test_an_answer_that_ends_at_once_is_an_error() -> None:
    with pytest.raises(ToolkitError, match="ends at once"):
        sides(Stand(0))[0].tok_s(NOTHING_MATCHES, 1)
