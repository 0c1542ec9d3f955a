"""What verify computes once, or on every processor, stays what it is; its progress adds up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from convert.bundle.kv_cache import FP16
from convert.checkpoint.config import ModelConfig
from quantize.schemes import GroupScheme
from runtime.engine_client.protocol import Stop
from runtime.inputs.generation_options import GenerationOptions
from runtime.inputs.prompt import Prompt
from runtime.reference import metrics
from runtime.reference.arithmetic import RoundedKVCache, hold_in_format
from runtime.reference.kv_cache import KVCache, pinned_tokens
from runtime.reference.lazy_weights import GroupCodes
from runtime.reference.model import MiniCPMV
from runtime.reference.parallel import parallel_map
from runtime.sessions.backend import ReferenceBackend
from runtime.sessions.generate import generate
from runtime.verify.cases import Case
from runtime.verify.measure.answers import GreedyAnswer, Question, greedy_answer
from runtime.verify.measure.steps import Steps
from runtime.verify.stages import TorchStages
from tests.support.compare import randomize
from tests.support.tiny_config import tiny_config

WINDOW, PINNED = 64, 4
OPTIONS = GenerationOptions(max_new_tokens=8)
PROMPT = [1, 7, 99, 250, 3, 12]


@pytest.fixture(scope="module")
def model() -> MiniCPMV:
    """A random model whose layers outweigh its tied embedding: it does not just repeat."""
    model = MiniCPMV(ModelConfig.from_json(tiny_config(scale_emb=1, scale_depth=12)))
    randomize(model)
    return model.eval()


class Counting(TorchStages):
    """Notes how many tokens are really run."""

    def __init__(self, model: MiniCPMV, cache: Callable[..., KVCache] = KVCache) -> None:
        super().__init__(model, cache)
        self.passes: list[int] = []

    def _run(self, inputs: Sequence[Tensor], start: int, cache: KVCache) -> list[Tensor]:
        self.passes.append(len(inputs[0]))
        return super()._run(inputs, start, cache)


def fresh(
    model: MiniCPMV, inputs: Sequence[Tensor], window: int, cache: Callable[..., KVCache]
) -> list[Tensor]:
    return TorchStages(model, cache).layers(inputs, window, PINNED)


def random(length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((length, tiny_config()["hidden_size"]), generator=generator)


CHANGES: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {  # and the tokens to run again
    "the same": (lambda x: x, 0),
    "shorter": (lambda x: x[:9], 0),
    "longer": (lambda x: torch.cat((x, random(3, 1))), 3),
    "another end": (lambda x: torch.cat((x[:10], random(6, 1))), 6),
    "another token": (lambda x: torch.cat((x[:5], random(1, 1), x[6:])), 15),
    "another start": (lambda x: torch.cat((random(1, 1), x[1:])), 20),
}


@pytest.mark.parametrize("cache", [KVCache, partial(RoundedKVCache, FP16)])
@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_tokens_that_a_pass_had_are_not_run_again(
    change: str, each: bool, cache: Callable[..., KVCache], model: MiniCPMV
) -> None:
    make, again = CHANGES[change]
    stages = Counting(model, cache)
    count = model.config.decoder.num_hidden_layers if each else 1
    first = [random(20, 10 * i) for i in range(count)]
    before = stages.layers(first, WINDOW, PINNED)
    kept = [output.clone() for output in before]
    second = [make(x) for x in first]
    found = stages.layers(second, WINDOW, PINNED)
    assert stages.passes == [20, again] if again else [20]
    for one, other in zip(found, fresh(model, second, WINDOW, cache), strict=True):
        # Another order of sums moves some keys and values by a step of float16.
        assert metrics.sqnr_db(other, one) > 70
    assert all(torch.equal(a, b) for a, b in zip(before, kept, strict=True))


@pytest.mark.parametrize("window", [8, 16, WINDOW])
def test_a_window_that_slides_forgets_no_less(window: int, model: MiniCPMV) -> None:
    stages, whole = Counting(model), random(20)
    for length in (20, 12, 20, 6, 19):
        x = torch.cat((whole[:length], random(2, length)))
        found = stages.layers([x], window, PINNED)
        for one, other in zip(found, fresh(model, [x], window, KVCache), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_passes_of_another_window_or_kind_do_not_meet(model: MiniCPMV) -> None:
    stages, x = Counting(model), random(20)
    stages.layers([x], WINDOW, PINNED)
    stages.layers([x], 10, PINNED)
    stages.layers([x], WINDOW, PINNED)
    assert stages.passes == [20, 20]
    stages.layers([x], WINDOW, PINNED + 1)  # other tokens stay
    stages.layers([x] * model.config.decoder.num_hidden_layers, WINDOW, PINNED)
    assert stages.passes == [20, 20, 20, 20]


def test_a_value_that_is_no_number_is_run_again(model: MiniCPMV) -> None:
    stages, x = Counting(model), random(5)
    x[3] = torch.nan
    for _ in range(2):
        stages.layers([x], WINDOW, PINNED)
    assert stages.passes == [5, 2]


def said_by_generate(model: MiniCPMV, options: GenerationOptions) -> GreedyAnswer:
    backend = ReferenceBackend(model)
    cache = backend.new_cache(WINDOW, pinned_tokens(None))
    hidden = backend.forward(backend.embed(PROMPT), cache)
    logits = backend.logits(hidden[-1:])[0]
    made = generate(
        backend, cache, logits, options, on_token=lambda token: None, cancelled=lambda: False
    )
    return GreedyAnswer(made.ids, made.stop == Stop.EOS)


def drafts(ids: list[int]) -> dict[str, tuple[list[int], list[int]]]:
    """Returns drafts of an answer of 8 tokens, and the passes that it then takes."""
    wrong = max(ids) + 1
    return {
        "none": ([], [6, 1, 1, 1, 1, 1, 1, 1]),
        "right": (ids, [14]),
        "half": (ids[:4], [10, 1, 1, 1]),
        "another end": ([*ids[:4], wrong, wrong], [12, 1, 1, 1]),
        "another start": ([wrong, *ids[1:]], [14, 1, 1, 1, 1, 1, 1, 1]),
        "too long": ([*ids, 5, 5, 5], [14]),
    }


@pytest.mark.parametrize("draft", drafts([0]))
def test_a_draft_changes_no_answer(draft: str, model: MiniCPMV) -> None:
    expected = said_by_generate(model, OPTIONS)
    assert len(expected.ids) == 8 and len(set(expected.ids)) > 3
    given, passes = drafts(expected.ids)[draft]
    stages = Counting(model)
    assert greedy_answer(stages, question(), given, OPTIONS, WINDOW) == expected
    assert stages.passes == passes


@pytest.mark.parametrize("drafted", [0, 2, 3, 8])
def test_an_answer_ends_with_the_end_token(drafted: int, model: MiniCPMV) -> None:
    ids = said_by_generate(model, OPTIONS).ids
    at = next(i for i in range(2, 8) if ids[i] not in ids[:i])
    decoder = model.config.decoder
    ended = ending(model, ids[at])
    assert decoder.eos_token_id != ids[at] == ended.config.decoder.eos_token_id
    found = greedy_answer(ended, question(), ids[:drafted], OPTIONS, WINDOW)
    assert found == GreedyAnswer(ids[:at], ended=True)


def test_the_picture_s_tokens_are_what_a_model_sees(model: MiniCPMV) -> None:
    stages, image = TorchStages(model), random(3)
    seen = Question(Prompt(PROMPT, 2), (image,))
    assert (seen.pinned, question().pinned) == (6, 4)
    embeds = stages.embed(PROMPT).clone()
    embeds[2:5] = image
    expected = stages.logits(fresh(model, [embeds], WINDOW, KVCache)[-1])
    found = seen.logits(stages, [], WINDOW)
    torch.testing.assert_close(found, expected[-1:], rtol=1e-4, atol=1e-4)


def question() -> Question:
    return Question(Prompt(PROMPT, None), ())


def ending(model: MiniCPMV, token: int) -> TorchStages:
    """Returns a model's stages whose answers end with a token."""
    stages = TorchStages(model)
    config = tiny_config(scale_emb=1, scale_depth=12, eos_token_id=token)
    stages.config = ModelConfig.from_json(config)
    return stages


@pytest.mark.parametrize("format", ["q4", "q8"])
def test_fast_rounding_gives_the_same_bits(format: str) -> None:
    scheme = GroupScheme.load("q4f16_1")
    weight = torch.from_numpy(np.random.default_rng(0).standard_normal((110, 2304))).bfloat16()
    weight[3, 32:200] = 0
    weight[4, :64] *= 1e-8  # too small for a scale
    one, other = (hold_in_format(weight, format, scheme, "w", fast=fast) for fast in (True, False))
    assert isinstance(one, GroupCodes) and isinstance(other, GroupCodes)
    assert torch.equal(one.codes, other.codes) and torch.equal(one.scale, other.scale)


def test_work_is_spread_in_order_and_counted() -> None:
    threads, counted = torch.get_num_threads(), list[int]()
    found = parallel_map(lambda i: (i * i, torch.get_num_threads()), range(5), counted.append)
    assert found == [(i * i, 1) for i in range(5)]
    assert counted == [0, 1, 2, 3, 4]
    assert torch.get_num_threads() == threads


def test_what_fails_is_told_and_threads_come_back() -> None:
    threads = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        parallel_map(lambda i: 1 // i, [1, 0])
    assert torch.get_num_threads() == threads


def test_a_new_picture_counts_and_a_second_question_about_it_does_not() -> None:
    told: list[tuple[str, int, int]] = []
    cases = [Case(name, (), None, name[:1]) for name in ("a1", "a2", "b1")]
    steps = Steps(cases, 7, lambda *state: told.append(state))
    steps.start(0)
    for _ in range(7):
        steps.block()
    for _ in range(4):
        steps.step()
    steps.start(1)
    steps.start(2)  # what is known takes no steps
    steps.start(3)
    question = (told[-1][2] - 2 * 7) // 3
    assert [done for _, done, _ in told[:8]] == list(range(8))
    assert [done for _, done, _ in told[-3:]] == [
        7 + question,
        7 + 2 * question,
        2 * 7 + 3 * question,
    ]
    assert told[-1][1] == told[-1][2] and {total for _, _, total in told} == {told[-1][2]}
    assert all(a[1] < b[1] for a, b in pairwise(told))


def test_questions_without_pictures_weigh_the_same() -> None:
    told: list[tuple[str, int, int]] = []
    steps = Steps([Case(name, ()) for name in "abc"], 0, lambda *state: told.append(state))
    for index in range(4):
        steps.start(index)
    done = [count for _, count, _ in told]
    assert done == [0, done[1], 2 * done[1], 3 * done[1]] and done[1] > 0
