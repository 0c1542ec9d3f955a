"""A draft of the answer changes neither the answer nor what a conversation remembers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from convert.config import ModelConfig
from runtime.backend import Cache, ReferenceBackend
from runtime.prompt import Message, Tokenizer
from runtime.reference.model import MiniCPMV
from runtime.reference_session import ReferenceSession
from runtime.sampling import GenerationOptions
from tests.compare import randomize
from tests.tiny import tiny_config, tokenizer_model

OPTIONS = GenerationOptions(max_new_tokens=8)
MESSAGES: list[Message] = [{"role": "user", "content": "What colour is the shape?"}]
WRONG = 7  # an id that the model does not say


class Counting(ReferenceBackend):
    """Notes how many tokens each pass has."""

    def __init__(self, model: MiniCPMV) -> None:
        super().__init__(model)
        self.passes: list[int] = []

    def forward(self, embeds: Tensor, cache: Cache) -> Tensor:
        self.passes.append(len(embeds))
        return super().forward(embeds, cache)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(tokenizer_model())
    return Tokenizer(path)


@pytest.fixture(scope="module")
def model() -> MiniCPMV:
    """A random model whose layers outweigh its tied embedding: it does not just repeat."""
    model = MiniCPMV(ModelConfig.from_json(tiny_config(scale_emb=1, scale_depth=12)))
    randomize(model)
    return model


def open_session(model: MiniCPMV, tokenizer: Tokenizer, window: int = 512) -> ReferenceSession:
    return ReferenceSession(Counting(model), tokenizer, window=window)


def drafts(said: list[int]) -> dict[str, tuple[Sequence[int], list[int]]]:
    """Returns drafts, and the passes behind the prompt that an answer of 8 tokens then takes."""
    return {
        "right": (said, [7]),
        "half": (said[:4], [4, 1, 1, 1]),
        "wrong at once": ([WRONG, *said], [1] * 7),
        "wrong in the middle": ([*said[:3], WRONG, *said[4:]], [7, 1, 1, 1, 1]),
        "too long": ([*said, WRONG, WRONG], [7]),
        "none": ((), [1] * 7),
    }


@pytest.mark.parametrize("kind", drafts([0] * 8))
def test_a_draft_changes_nothing_but_the_passes(
    kind: str, model: MiniCPMV, tokenizer: Tokenizer
) -> None:
    plain = open_session(model, tokenizer)
    expected = plain.reply(MESSAGES, None, OPTIONS)
    assert len(expected.ids) == 8 and WRONG not in expected.ids
    assert len(set(expected.ids)) > 2, "a model that repeats itself would prove little"
    draft, passes = drafts(expected.ids)[kind]
    session = open_session(model, tokenizer)
    reply = session.reply(MESSAGES, None, OPTIONS, draft=draft)
    assert (reply.ids, reply.text) == (expected.ids, expected.text)
    assert session.backend.passes[1:] == passes
    more = [
        *MESSAGES,
        Message(role="assistant", content=reply.text),
        Message(role="user", content="Why?"),
    ]
    following = [s.reply(more, None, OPTIONS) for s in (plain, session)]
    assert following[0].ids == following[1].ids
    assert following[0].statistics.reused_tokens == following[1].statistics.reused_tokens


def test_a_draft_that_the_end_token_follows(
    model: MiniCPMV, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = open_session(model, tokenizer).reply(MESSAGES, None, OPTIONS).ids
    first = said.index(said[5])
    config = ModelConfig.from_json(tiny_config(scale_emb=1, scale_depth=12, eos_token_id=said[5]))
    session = open_session(model, tokenizer)
    monkeypatch.setattr(session.backend, "config", config)
    reply = session.reply(MESSAGES, None, OPTIONS, draft=said[:first])
    assert (reply.ids, reply.statistics.stop) == (said[:first], "eos")


def test_a_draft_beyond_the_window_is_left_aside(model: MiniCPMV, tokenizer: Tokenizer) -> None:
    plain = open_session(model, tokenizer)
    expected = plain.reply(MESSAGES, None, OPTIONS)
    window = expected.statistics.prompt_tokens + 8
    session = open_session(model, tokenizer, window)
    reply = session.reply(MESSAGES, None, OPTIONS, draft=expected.ids)
    assert reply.ids == expected.ids
    assert session.backend.passes[1:] == [1] * 7
    roomy = open_session(model, tokenizer, window + 1)
    assert roomy.reply(MESSAGES, None, OPTIONS, draft=expected.ids).ids == expected.ids
    assert roomy.backend.passes[1:] == [7]


def test_logits_of_a_draft_are_those_of_single_steps(model: MiniCPMV) -> None:
    ids = [5, 9, 13, 21, 34]
    backend = ReferenceBackend(model)
    caches = [backend.new_cache(512, 4) for _ in range(2)]
    at_once = backend.logits(backend.forward(backend.embed(ids), caches[0]))
    steps = [backend.logits(backend.forward(backend.embed([i]), caches[1]))[-1] for i in ids]
    torch.testing.assert_close(at_once, torch.stack(steps), rtol=1e-4, atol=1e-4)
