"""GPTQ and AWQ on small problems whose right answers follow from elsewhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from quantize import gptq
from quantize.awq import choose_factors
from quantize.errors import CheckpointError
from quantize.fast import nearest_codes
from quantize.gptq import (
    DAMPINGS,
    Compensation,
    Damping,
    Inputs,
    Tokens,
    choose_damping,
)
from quantize.kernels import search_scales
from quantize.schemes import GroupScheme, dequantize_groups
from quantize.search import search_groups

SCHEME = replace(GroupScheme.load("q4f16_1"), max_code=15)
DAMPING = 0.01  # a share of the mean power


def correlated(tokens: int, width: int, seed: int = 0) -> Tensor:
    """Inputs that depend on each other, as activations do."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(tokens, width // 4, generator=generator)
    mix = torch.randn(width // 4, width, generator=generator)
    return base @ mix + 0.3 * torch.randn(tokens, width, generator=generator)


def values(q: Tensor, scale: Tensor) -> Tensor:
    return torch.from_numpy(dequantize_groups(q.numpy(), scale.numpy(), SCHEME))


def statistics(
    seen: Tensor,
    wanted: Tensor | None = None,
    target: Tensor | None = None,
) -> Inputs:
    if target is not None:
        return Inputs.of([Tokens(seen, target)], seen.shape[1], targets=True)
    return Inputs.of([Tokens(seen, seen if wanted is None else wanted)], seen.shape[1])


def correct(weight: Tensor, inputs: Inputs) -> Tensor:
    return Compensation(inputs, SCHEME, name="w").correct(weight, DAMPING)


def rounded(weight: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor]:
    return Compensation(inputs, SCHEME, name="w").round(weight, DAMPING)


def output_error(weight: Tensor, rounded: Tensor, inputs: Tensor) -> float:
    return float((inputs @ (rounded - weight).T).square().mean())


@pytest.fixture(scope="module")
def weight() -> Tensor:
    return torch.randn(70, 128, generator=torch.Generator().manual_seed(5)) * 0.05


def test_compensation_loses_much_less(weight: Tensor) -> None:
    inputs = correlated(2000, 128)
    compensated = values(*rounded(weight, statistics(inputs)))
    half = weight.half().numpy()
    searched = torch.from_numpy(dequantize_groups(*search_groups(half, SCHEME, name="w"), SCHEME))
    unseen = correlated(2000, 128)  # the same mixing
    assert output_error(weight, compensated, unseen) < 0.35 * output_error(weight, searched, unseen)


@pytest.mark.parametrize("width", [64, 192])  # fewer, and more, than are rounded at once
def test_equals_the_textbook(width: int) -> None:
    """Optimal brain quantization, input by input, with the inverse recomputed each time."""
    inputs = correlated(500, width, seed=2)
    small = torch.randn(5, width, generator=torch.Generator().manual_seed(5)) * 0.05
    q, scale = rounded(small, statistics(inputs))
    power = inputs.double().T @ inputs.double()
    power += torch.eye(width) * DAMPING * power.diagonal().mean()
    sums = power.diagonal().view(-1, 32).sum(-1)
    order = [
        int(g) * 32 + int(i)
        for g in sums.argsort(descending=True)
        for i in power.diagonal()[int(g) * 32 : int(g) * 32 + 32].argsort(descending=True)
    ]
    now = small.double().clone()
    for step, at in enumerate(order):
        left = order[step:]
        inverse = torch.linalg.inv(power[left][:, left])
        steps = scale[:, at // 32].double()
        codes = nearest_codes(now[:, at], steps, SCHEME)
        np.testing.assert_array_equal(codes + 7, q[:, at].double(), err_msg=f"input {at}")
        loss = (now[:, at] - codes * steps) / inverse[0, 0]
        now[:, left] -= loss[:, None] * inverse[0]


def test_rows_do_not_depend_on_each_other(weight: Tensor) -> None:
    inputs = statistics(correlated(500, 128))
    q, scale = rounded(weight, inputs)
    alone_q, alone_scale = rounded(weight[17:18], inputs)
    assert torch.equal(alone_q[0], q[17]) and torch.equal(alone_scale[0], scale[17])


def test_correction_makes_good_a_drift(weight: Tensor) -> None:
    wanted = correlated(3000, 128)
    seen = wanted + 0.2 * torch.roll(wanted, 1, dims=1)
    moved = correct(weight, statistics(seen, wanted))
    before = float((wanted @ weight.T - seen @ weight.T).square().mean())
    after = float((wanted @ weight.T - seen @ moved.T).square().mean())
    assert after < 0.2 * before
    assert torch.allclose(correct(weight, statistics(wanted)), weight)


@pytest.mark.parametrize("rows", [70, 700])  # fewer, and more, than the 512 inputs
@pytest.mark.parametrize("adds", [False, True])
def test_correction_is_the_solution(rows: int, adds: bool) -> None:
    wanted = correlated(3000, 512, seed=3)
    wanted[:, [7, 300]] *= 50
    seen = wanted + 0.1 * torch.roll(wanted, 1, dims=1)
    generator = torch.Generator().manual_seed(8)
    weight = torch.randn(rows, 512, generator=generator) * 0.05
    behind = torch.randn(3000, rows, generator=generator) if adds else torch.zeros(3000, rows)
    inputs = statistics(seen, wanted, wanted @ weight.T + behind if adds else None)
    f, x = wanted.double(), seen.double()
    power, missing = x.T @ x, ((f - x) @ weight.double().T + behind).T @ x
    damped = power + torch.eye(512) * DAMPING * power.diagonal().mean()
    step = torch.linalg.solve(damped, missing.T).T
    moved = correct(weight, inputs).double() - weight
    # With a target, large sums nearly cancel each other; float32 holds them to 24 bits.
    assert float((moved - step).norm() / step.norm()) < (4e-3 if adds else 1e-3)


def test_without_tokens_nothing_moves(weight: Tensor) -> None:
    nothing = Inputs.of([], 128)
    assert torch.equal(correct(weight, nothing), weight)
    q, scale = rounded(weight, nothing)
    assert float((values(q, scale) - weight).abs().max()) < 0.05


def test_loss_is_the_error_of_the_output(weight: Tensor) -> None:
    wanted, other = correlated(50, 128, seed=1), weight + 0.01
    seen = wanted + 0.1 * torch.roll(wanted, 1, dims=1)
    behind = torch.randn(50, 70, generator=torch.Generator().manual_seed(9))
    f, x, w, b, stored = (m.double() for m in (wanted, seen, weight, behind, other))
    before = (f @ w.T + b - x @ w.T).square().sum()
    error = (f @ w.T + b - x @ stored.T).square().sum() - before
    inputs = statistics(seen, wanted, wanted @ weight.T + behind)
    assert inputs.loss(weight, other) == pytest.approx(float(error), rel=1e-4)
    fifth = (
        ((f @ w.T + b - x @ stored.T).square() - (f @ w.T + b - x @ w.T).square())[:, ::5]
    ).sum()
    assert inputs.every(5).loss(weight[::5], other[::5]) == pytest.approx(float(fifth), rel=1e-4)
    rounding = (x @ w.T - x @ stored.T).square().sum()
    assert inputs.error(weight, other) == pytest.approx(float(rounding), rel=1e-4)


def test_sums_of_parts_are_those_of_all(weight: Tensor) -> None:
    wanted, target = correlated(300, 128, seed=1), correlated(300, 128, seed=2)[:, :70]
    seen = wanted + 0.1 * torch.roll(wanted, 1, dims=1)
    parts = (slice(100), slice(100, 300))
    nothing = Inputs.of([], 128)
    for adds in (False, True):
        whole, *some = (
            statistics(seen[s], wanted[s], target[s] if adds else None)
            for s in (slice(300), *parts)
        )
        for summed in (some[0] + some[1], nothing + whole, whole + nothing):
            assert (summed.target is None, summed.drift is None) == (not adds, adds)
            for found, expected, close in (
                (summed.power, whole.power, 1e-5),
                (summed.missing(weight), whole.missing(weight), 1e-5),
            ):
                assert float((found - expected).norm() / expected.norm()) < close


def test_power_that_float32_cannot_factor(weight: Tensor) -> None:
    """One direction holds nearly all the power: rounding makes the sums indefinite."""
    generator = torch.Generator().manual_seed(6)
    inputs = torch.randn(4000, 1, generator=generator) * torch.ones(128) * 1e3
    inputs += 1e-3 * torch.randn(4000, 128, generator=generator)
    small = statistics(inputs)
    share = 1e-9
    power = small.power.double() + torch.eye(128) * share * small.power.diagonal().mean()
    assert torch.linalg.cholesky_ex(power)[1], "the test's inputs are too tame"
    q, scale = Compensation(small, SCHEME, name="w").round(weight, share)
    rtn = torch.from_numpy(
        dequantize_groups(*search_groups(weight.half().numpy(), SCHEME, name="w"), SCHEME)
    )
    assert output_error(weight, values(q, scale), inputs) < output_error(weight, rtn, inputs)


def test_a_correction_may_be_damped_more_than_rounding(weight: Tensor) -> None:
    wanted = correlated(3000, 128)
    inputs = statistics(wanted + 0.2 * torch.roll(wanted, 1, dims=1), wanted)
    damping = Damping(0.5, DAMPING)
    codes = Compensation(inputs, SCHEME, name="w").compensate(weight, damping)
    moved = Compensation(inputs, SCHEME, name="w").correct(weight, 0.5)
    assert all(map(torch.equal, codes, rounded(moved, inputs)))


def test_damping_is_what_serves_unseen_tokens(
    weight: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(4)

    def part(wanted: Tensor, noise: float) -> Inputs:
        drawn = torch.randn(wanted.shape, generator=generator)
        return statistics(wanted + noise * drawn, wanted)

    def chosen(tokens: int, noise: float, *, alike: bool = True) -> Damping:
        count = tokens + 500
        inputs = correlated(count, 128) if alike else torch.randn(count, 128, generator=generator)
        seen, held_out = part(inputs[:tokens], noise), part(inputs[tokens:], noise)
        return choose_damping(weight, seen, held_out, SCHEME, name="w")

    assert chosen(20_000, 1.0) != DAMPINGS[0]  # the correction is known well
    few = gptq.FEWEST_TOKENS * 128
    assert chosen(few, 1.0) != DAMPINGS[0]  # for inputs that depend on each other they suffice
    assert chosen(few, 1.0, alike=False) == DAMPINGS[0]  # otherwise it fits their noise
    monkeypatch.setattr(gptq, "MARGIN", 100.0)
    assert chosen(20_000, 1.0) == DAMPINGS[0], "hardly better is not enough"
    monkeypatch.setattr(gptq, "Compensation", None)
    assert chosen(few - 1, 1.0) == DAMPINGS[0], "with fewer nothing is tried"
    nothing = Inputs.of([], 128)
    assert choose_damping(weight, nothing, nothing, SCHEME, name="w") == DAMPINGS[0]


def test_compensation_refuses(weight: Tensor) -> None:
    broken = weight.clone()
    broken[3, 4] = torch.inf
    with pytest.raises(CheckpointError, match=r"layers\.1\.o: holds NaN or infinity"):
        Compensation(Inputs(torch.eye(128), 128), SCHEME, name="layers.1.o").round(broken, DAMPING)
    overflown = statistics(torch.full((2, 128), 1e30))
    with pytest.raises(CheckpointError, match=r"layers\.1\.o: its inputs overflow"):
        Compensation(overflown, SCHEME, name="layers.1.o")


def searched(weight: Tensor) -> Tensor:
    groups = weight.view(len(weight), -1, SCHEME.group_size)
    scale = search_scales(groups, SCHEME, None)
    return (nearest_codes(groups, scale, SCHEME) * scale).view_as(weight)


def test_awq_protects_large_activations(weight: Tensor) -> None:
    inputs = torch.randn(1000, 128, generator=torch.Generator().manual_seed(6))
    inputs[:, [3, 40, 99]] *= 30
    factors = choose_factors([weight, weight[:20] * 2], inputs, searched)
    assert factors[[3, 40, 99]].min() > 1.5 * factors.median()
    folded = searched(weight * factors) / factors
    plain = output_error(weight, searched(weight), inputs)
    assert output_error(weight, folded, inputs) < 0.5 * plain


def test_awq_leaves_alone_what_it_cannot_help(weight: Tensor) -> None:
    assert torch.equal(choose_factors([weight], torch.zeros(10, 128), searched), torch.ones(128))
    factors = choose_factors([weight], correlated(100, 128), lambda w: w)
    assert torch.equal(factors, torch.ones(128))
