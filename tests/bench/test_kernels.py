"""What the micro-benchmark measures: every kernel once, with the sizes that it really gets."""

from __future__ import annotations

import numpy as np
import pytest

from convert.bundle.plan import Recipe, make_plan
from convert.checkpoint.config import ModelConfig
from convert.checkpoint.reader import DEMO_NAME
from convert.checkpoint.synth import load_config
from tests.bench import machine_limits
from tests.bench.kernel_cases import Argument, Case, cases, compiled, host_variants, kind
from tests.bench.kernels import Limits, Sample, random_argument
from tests.support.processor import processor_features
from tests.support.slices import slices_config

VARIANTS = list(host_variants(processor_features()))
needs_x86 = pytest.mark.skipif(not VARIANTS, reason="needs x86-64 with SSE4.2")


def linear(dtype: str, rows: int) -> Case:
    blocks = 4 if dtype == "uint8" else 8
    arguments = (
        Argument((rows, 3, 32), "int8"),
        Argument((rows, 3), "float32"),
        Argument((rows, 3), "int32"),
        Argument((2, 3, blocks, 64), dtype),
        Argument((2, 3, 16), "float16"),
        Argument((rows, 20), "float32"),
    )
    return Case(kind="linear", caller="f", function=None, rows=rows, arguments=arguments)


@pytest.mark.parametrize(("dtype", "format"), [("uint8", "q4"), ("int8", "q8")])
def test_work_of_a_product(dtype: str, format: str) -> None:
    case = linear(dtype, 5)
    assert (case.format, case.matrix, case.work) == (format, (32, 96), "int8")
    assert case.multiply_adds == 5 * 32 * 96
    weights = 32 * 96 // (2 if format == "q4" else 1)
    assert case.nbytes == 5 * 96 + 5 * 3 * 8 + weights + 2 * 3 * 16 * 2 + 5 * 20 * 4


def test_kinds_are_names_without_figures() -> None:
    assert kind("linear_q8_2304x23041") == "linear"
    assert kind("quantize_1152") == "quantize"
    assert kind("word_attention1") == "word_attention"


def test_the_nearer_limit_counts() -> None:
    limits = Limits(bytes_s=100, multiply_adds_s=1000)
    assert limits.share(50, 100, 1) == (0.5, "memory")
    assert limits.share(50, 800, 1) == (0.8, "multiply")


@needs_x86
def test_every_kernel_runs() -> None:
    config = load_config(DEMO_NAME)
    assert config.vision is not None
    found = cases_of(config, patches=config.vision.num_patches)
    for case in {case.kind: case for case in found}.values():
        assert Sample(compiled(case, VARIANTS[-1])["main"], case).seconds() > 0


@needs_x86
def test_kernels_of_several_shapes_run_on_a_square() -> None:
    found = cases_of(ModelConfig.from_json(slices_config()), patches=32**2)
    (sums,) = (case for case in found if case.kind == "grid_sums")
    assert [argument.shape for argument in sums.arguments] == [(32, 256), (32, 256), (1024, 256)]
    assert Sample(compiled(sums, VARIANTS[-1])["main"], sums).seconds() > 0


def cases_of(config: ModelConfig, *, patches: int) -> list[Case]:
    plan = make_plan(config, False, Recipe.load("q4f16_1"))
    found = list(cases(config, plan, VARIANTS[-1], (1, 3)))
    assert {"linear", "embedding", "quantize", "rms_norm_quantize"} <= {case.kind for case in found}
    assert {case.format for case in found} >= {"", "q4", "q8", "f16"}
    assert {case.rows for case in found if case.caller.startswith("decoder_layer_")} == {1, 3}
    in_blocks = [case for case in found if case.caller.startswith("vision_block_")]
    assert {case.rows for case in in_blocks} == {patches}
    assert all(case.nbytes > 0 for case in found)
    return found


def test_values_suit_their_kernels() -> None:
    rng = np.random.default_rng(0)
    codes = random_argument(linear("int8", 2), 3, rng)
    assert codes.min() == -127  # what `quantize` gives at least
    ids = Case(
        kind="embedding", caller="embed", function=None, rows=9,
        arguments=(
            Argument((9,), "int32"), Argument((2, 3, 4, 64), "uint8"),
            Argument((2, 3, 16), "float16"), Argument((9, 96), "float32"),
        ),
    )  # fmt: skip
    assert 0 <= random_argument(ids, 0, rng).min() <= random_argument(ids, 0, rng).max() < 32


@needs_x86
def test_limits_do_the_work_that_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    variant = VARIANTS[-1]
    monkeypatch.setattr(machine_limits, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(machine_limits, "_STEPS", 10)
    read, nbytes = machine_limits.reader(variant)
    read()
    assert nbytes == 1 << 20
    for instruction in machine_limits.PEAKS[variant.products].values():
        multiply, count = machine_limits.multiplier(instruction, variant, 2)
        multiply()
        assert count == 2 * 12 * 10 * instruction.multiply_adds
