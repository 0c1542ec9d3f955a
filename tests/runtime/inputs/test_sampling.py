"""Sampling, against transformers' logits processors."""

import pytest
import torch
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from quantize.errors import ConfigError
from runtime.inputs.generation_options import GenerationOptions
from runtime.inputs.prompt import BOS_ID
from runtime.inputs.sampling import Sampler, distribution, penalize

VOCAB = 4801


def random_logits(seed: int, std: float = 4.0) -> torch.Tensor:
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed)) * std


def theirs(logits, generated, temperature, top_k, top_p, penalty):
    """The probabilities (V,) that transformers samples from.

    4.36 begins the answer to a prompt of embeddings with `<s>`, which so counts as generated.
    """
    ids = torch.tensor([[BOS_ID, *generated]], dtype=torch.long)
    scores = logits[None]
    if penalty != 1:
        scores = RepetitionPenaltyLogitsProcessor(penalty)(ids, scores)
    scores = TemperatureLogitsWarper(temperature)(ids, scores)
    if top_k:  # as `generate` does: 0 is no limit
        scores = TopKLogitsWarper(top_k)(ids, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(ids, scores)
    return scores.softmax(-1)[0]


def ours(logits, generated, temperature, top_k, top_p, penalty):
    options = GenerationOptions(
        max_new_tokens=1,
        do_sample=True,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=penalty,
    )
    ids, probabilities = distribution(penalize(logits, generated, penalty), options)
    return torch.zeros(VOCAB).index_copy(0, ids, probabilities)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "penalty"),
    [
        (0.6, 100, 0.8, 1.0),  # MiniCPM-V 1.0
        (0.7, 100, 0.8, 1.05),  # MiniCPM-V 2.0
        (1.0, None, 1.0, 1.0),
        (1.7, None, 0.95, 1.3),
        (0.3, 1, 1.0, 1.0),
        (1.0, 5, 0.01, 0.8),
        (1.0, VOCAB + 1, 0.5, 1.2),
        (1.0, 0, 0.9, 1.2),
        (1.0, 0, 0.0, 1.0),
        (0.7, 100, 0.0, 1.05),
    ],
)
def test_the_same_tokens_survive_with_the_same_probabilities(
    seed, temperature, top_k, top_p, penalty
):
    logits = random_logits(seed)
    likeliest = logits.topk(20).indices.tolist()
    generated = [*likeliest[::3], 7, 7, int(logits.argmin())]
    settings = (logits, generated, temperature, top_k, top_p, penalty)
    expected, found = theirs(*settings), ours(*settings)
    assert torch.equal(expected > 0, found > 0)
    assert (expected - found).abs().max() < 1e-6  # another order of summing in softmax


def test_tokens_that_tie_with_the_last_of_top_k_survive():
    logits = torch.zeros(VOCAB)
    logits[10:20] = 3.0
    settings = (logits, [], 1.0, 4, 1.0, 1.0)
    assert torch.equal(theirs(*settings) > 0, ours(*settings) > 0)
    assert int((ours(*settings) > 0).sum()) == 10


def test_drawn_tokens_have_their_probabilities():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    options = GenerationOptions(max_new_tokens=1, do_sample=True, top_p=0.9, seed=3)
    sampler = Sampler(options)
    drawn = torch.tensor([sampler.choose(logits, []) for _ in range(4000)])
    share = torch.bincount(drawn, minlength=4) / 4000
    expected = torch.tensor([0.5, 0.3, 0.15, 0.0]) / 0.95
    assert (share - expected).abs().max() < 0.03  # 4 standard deviations
    assert share[3] == 0


def test_a_seed_gives_the_same_tokens_and_another_seed_others():
    def draw(seed: int) -> list[int]:
        options = GenerationOptions(max_new_tokens=1, do_sample=True, seed=seed)
        sampler = Sampler(options)
        return [sampler.choose(random_logits(i, 0.1), []) for i in range(5)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_without_a_limit_top_k_is_one_value():
    assert GenerationOptions(max_new_tokens=1, top_k=0) == GenerationOptions(max_new_tokens=1)


def test_top_p_0_leaves_the_likeliest():
    options = GenerationOptions(max_new_tokens=1, do_sample=True, top_p=0)
    assert all(
        Sampler(options).choose(random_logits(i), []) == int(random_logits(i).argmax())
        for i in range(20)
    )


def test_the_start_token_counts_as_generated():
    """The original's answers begin with `<s>`, so that its penalty strikes it at once."""
    assert penalize(torch.tensor([1.0, 3.0, 2.9]), [], 1.2).tolist() == [
        1.0,
        2.5,
        2.9000000953674316,
    ]
    assert penalize(torch.tensor([1.0, -3.0]), [0], 2.0).tolist() == [0.5, -6.0]


def test_greedy_takes_the_likeliest_after_the_penalty():
    logits = torch.tensor([0.0, 3.0, 2.9, -5.0])
    assert Sampler(GenerationOptions(max_new_tokens=1)).choose(logits, [1]) == 1
    penalized = GenerationOptions(max_new_tokens=1, repetition_penalty=1.2)
    assert Sampler(penalized).choose(logits, [1]) == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", 1.5),
        ("temperature", -0.5),
        ("temperature", 0.0),
        ("temperature", float("nan")),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_k", True),
        ("top_p", -0.1),
        ("top_p", False),
        ("top_p", float("nan")),
        ("top_p", 1.01),
        ("repetition_penalty", 0.0),
        ("num_beams", 0),
        ("seed", -1),
        ("seed", 2**63),
        ("stop", "text"),
        ("stop", ("",)),
        ("stop", ("ok", 3)),
        ("stop", ("\ud83d",)),
    ],
)
def test_a_value_out_of_range_is_named(field, value):
    with pytest.raises(ConfigError, match=f"{field} is "):
        GenerationOptions(**({"max_new_tokens": 5} | {field: value}))


def test_beams_and_sampling_exclude_each_other():
    with pytest.raises(ConfigError, match="num_beams is 3 while sampling"):
        GenerationOptions(max_new_tokens=5, do_sample=True, num_beams=3)


def test_beams_and_stop_texts_exclude_each_other():
    with pytest.raises(ConfigError, match="stop texts"):
        GenerationOptions(max_new_tokens=5, stop=("end",), num_beams=3)


def test_logits_that_overflowed_are_refused():
    logits = torch.tensor([0.0, float("nan")])
    with pytest.raises(ConfigError, match="not finite"):
        Sampler(GenerationOptions(max_new_tokens=1)).choose(logits, [])
