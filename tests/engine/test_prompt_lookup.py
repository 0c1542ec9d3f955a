"""Drafted tokens: where they come from, when they are paused, and that answers do not change."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from convert.bundle.program import Program
from runtime.engine_client.client import EngineAnswer, EngineClient, EngineError
from runtime.engine_client.protocol import ErrorCode, Field, Stop
from runtime.inputs.prompt import Message
from tests.engine.components import Components, numbers
from tests.engine.engines import Built
from tests.engine.operations import REPEATING

WINDOW = 160
ONCE = 10.0  # ms of a pass over one token
CHEAP, DEAR = 12.0, 35.0  # ms of a pass over several
TEXT = "the cat sat on the mat and the cat sat on the mat and the cat sat on"


class Steps:
    """Tokens of an answer with the passes that follow them."""

    def __init__(self, components: Components, prompt: Sequence[int]) -> None:
        self._components, self._prompt = components, prompt
        self._steps: list[float] = []

    def add(
        self, token: int, *, most: int = 99, accepted: int = 0, several_ms: float = DEAR
    ) -> None:
        self._steps += [token, most, accepted, ONCE, several_ms]

    def drafts(self) -> list[list[int]]:
        steps = " ".join(f"{number:g}" for number in self._steps)
        found: list[list[int]] = [[]]
        for number in self._components.ints("lookup", numbers(self._prompt), steps):
            if number < 0:
                found.append([])
            else:
                found[-1].append(number)
        return found[:-1]


def test_the_latest_place_counts(components: Components) -> None:
    steps = Steps(components, [1, 2, 3, 10, 1, 2, 3, 20, 21, 22, 23, 5])
    for token in (1, 2, 3):
        steps.add(token)
    assert steps.drafts() == [[], [], [20, 21, 22]]


def test_two_tokens_are_not_enough(components: Components) -> None:
    steps = Steps(components, [1, 2, 3, 10, 11])
    for token in (9, 2, 3):
        steps.add(token)
    assert steps.drafts() == [[], [], []]


def test_before_a_pass_was_measured_there_is_no_draft(components: Components) -> None:
    steps = Steps(components, [1, 2, 3, 10, 1, 2])
    steps.add(3)
    assert steps.drafts() == [[]]


@pytest.mark.parametrize("most", [0, 1, 2, 3, 4])
def test_no_more_than_the_answer_may_have(components: Components, most: int) -> None:
    steps = Steps(components, [1, 2, 3, 10, 11, 12, 13, 14])
    for token in (1, 2, 3):
        steps.add(token, most=most)
    assert steps.drafts()[-1] == [10, 11, 12][:most]


def test_a_loop_is_drafted_beyond_the_newest_token(components: Components) -> None:
    steps = Steps(components, [])
    for token in (7, 8, 7, 8, 7):
        steps.add(token)
    assert steps.drafts() == [[], [], [], [], [8, 7, 8]]
    steps = Steps(components, [9])
    for _ in range(5):
        steps.add(4)
    assert steps.drafts() == [[], [], [], [4, 4, 4], []], "and is paused after the wrong draft"


def test_drafts_that_lose_time_are_paused_for_longer_and_longer(components: Components) -> None:
    steps = Steps(components, [])
    for _ in range(200):  # what was drafted is always wrong
        steps.add(4)
    drafted = [i for i, draft in enumerate(steps.drafts()) if draft]
    pauses = [b - a - 1 for a, b in itertools.pairwise(drafted)]
    assert pauses == [16, 32, 64]


def test_drafts_that_save_time_go_on(components: Components) -> None:
    steps = Steps(components, [])
    for _ in range(50):
        steps.add(4, accepted=1, several_ms=CHEAP)
    assert all(steps.drafts()[3:])
    dear = Steps(components, [])
    for _ in range(50):  # all are right, and yet a pass over each alone would be faster
        dear.add(4, accepted=3, several_ms=5 * ONCE)
    assert len(list(filter(None, dear.drafts()))) == 2


@pytest.fixture(scope="module")
def running(engine: list[str | Program]) -> Iterator[EngineClient]:
    with EngineClient(engine, quiet_seconds=60) as client:
        yield client


@pytest.fixture
def client(built: Built, running: EngineClient) -> EngineClient:
    running.load(built.bundle, window=WINDOW)
    return running


def ask(client: EngineClient, text: str, *, tokens: int = 60, **options: Any) -> EngineAnswer:
    client.reset()
    question: list[Message] = [Message(role="user", content=text)]
    return client.chat(question, max_new_tokens=tokens, options=options)


def followed(client: EngineClient, first: EngineAnswer, **options: Any) -> EngineAnswer:
    """Asks on, in the cache that the first answer left."""
    turns = (("user", TEXT), ("assistant", first.text), ("user", "again"))
    messages: list[Message] = [Message(role=role, content=text) for role, text in turns]
    return client.chat(messages, max_new_tokens=20, options=options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        REPEATING,
        {"do_sample": True, "temperature": 0.5, "seed": 3, **REPEATING},
        {"do_sample": True, "top_p": 0.8, "top_k": 5, "seed": 4},
        {"top_logprobs": 3, **REPEATING},
    ],
)
def test_answers_are_the_same(client: EngineClient, options: dict[str, Any]) -> None:
    plain = ask(client, TEXT, **options, lookup=False)
    after_plain = followed(client, plain, lookup=False)
    drafted = ask(client, TEXT, **options)
    after_drafted = followed(client, drafted)
    assert (drafted.ids, drafted.text, drafted.stop) == (plain.ids, plain.text, plain.stop)
    assert (after_drafted.ids, after_drafted.text) == (after_plain.ids, after_plain.text)
    for name in (Field.DECODE_STEPS, Field.GENERATED_TOKENS, Field.REUSED_TOKENS):
        assert drafted.statistics[name] == plain.statistics[name]
        assert after_drafted.statistics[name] == after_plain.statistics[name], name
    assert plain.statistics[Field.DRAFTED_TOKENS] == plain.statistics[Field.ACCEPTED_TOKENS] == 0


def test_what_repeats_is_drafted_and_accepted(client: EngineClient) -> None:
    about = ask(client, TEXT, **REPEATING).statistics
    assert about[Field.DRAFTED_TOKENS] >= about[Field.ACCEPTED_TOKENS] > 0


def test_an_answer_may_slide_out_of_the_window(client: EngineClient) -> None:
    plain = ask(client, TEXT, tokens=2 * WINDOW, **REPEATING, lookup=False)
    drafted = ask(client, TEXT, tokens=2 * WINDOW, **REPEATING)
    assert len(plain.ids) == 2 * WINDOW and drafted.ids == plain.ids
    assert drafted.statistics[Field.ACCEPTED_TOKENS] > 0


@pytest.mark.parametrize("tokens", range(1, 12))
def test_an_answer_may_end_among_drafts(client: EngineClient, tokens: int) -> None:
    plain = ask(client, TEXT, tokens=tokens, **REPEATING, lookup=False)
    drafted = ask(client, TEXT, tokens=tokens, **REPEATING)
    assert (drafted.ids, drafted.stop) == (plain.ids, plain.stop) and plain.stop == Stop.LENGTH
    assert followed(client, drafted).ids == followed(client, plain, lookup=False).ids


def test_a_stop_string_among_drafts(client: EngineClient) -> None:
    whole = ask(client, TEXT, **REPEATING, lookup=False)
    piece = whole.text[len(whole.text) // 2 :][:3]
    plain = ask(client, TEXT, **REPEATING, stop=[piece], lookup=False)
    drafted = ask(client, TEXT, **REPEATING, stop=[piece])
    assert drafted.stop == plain.stop == Stop.STOP_STRING
    assert (drafted.ids, drafted.text) == (plain.ids, plain.text)


def test_lookup_is_true_or_false(client: EngineClient) -> None:
    with pytest.raises(EngineError, match="lookup") as error:
        ask(client, TEXT, lookup="yes")
    assert error.value.code == ErrorCode.INVALID_REQUEST
