"""Arm's matrix unit: its kernel, its trial at start, and the blocks that use it.

No device has run any of this: qemu 10 emulates the unit. Its `sme_fa64=off` traps what is not
allowed while vectors are streaming.
"""

from __future__ import annotations

import logging
import shutil
from typing import Any

import numpy as np
import pytest

from convert.bundle.manifest import Bundle
from runtime.engine_client.client import EngineClient, engine_command
from runtime.engine_client.emulator import QEMU_PROGRAM, emulates_sme
from runtime.engine_client.options import QEMU, EngineOptions
from runtime.engine_client.places import open_place
from runtime.engine_client.protocol import Field, Tap
from runtime.inputs.prompt import Message
from tests.engine.components import Components, numbers
from tests.engine.engines import Built
from tests.engine.test_picture import random_picture
from tests.support.needs import need_qemu, need_sme

# Vectors of 16, 32 and 64 bytes.
CPUS = [f"max,sme{bits}=on,sme_fa64=off" for bits in (128, 256, 512)]
TOO_WIDE = "max,sme1024=on"
TILE = 16


def pack_tiles(tokens: np.ndarray) -> np.ndarray:
    """Packs (L, G, ...) in tiles of 16 tokens, which become the last axis; missing ones are 0."""
    length = len(tokens)
    padded = np.zeros((-(-length // TILE) * TILE, *tokens.shape[1:]), tokens.dtype)
    padded[:length] = tokens
    return np.moveaxis(padded.reshape(-1, TILE, *tokens.shape[1:]), 1, -1)


def expected_products(
    weights: np.ndarray, steps: np.ndarray, tokens: np.ndarray, scales: np.ndarray
) -> np.ndarray:
    """Returns the products of weights (G, Q, 16, n) and tokens (L, G, Q, n), scaled: (L, 16)."""
    dots = np.einsum("gqri,lgqi->glr", weights.astype(np.int64), tokens.astype(np.int64))
    expected = np.zeros((len(tokens), TILE), np.float32)
    for group in range(len(weights)):
        factor = steps[group].astype(np.float32) * scales[:, group, None]
        # In float64 the product of two float32 numbers is exact, and the sum nearly so.
        added = dots[group].astype(np.float32).astype(np.float64) * factor
        expected = (expected + added).astype(np.float32)
    return expected


def case(
    length: int, columns: int, groups: int, quads: int, inputs: int = 4
) -> tuple[list[Any], np.ndarray]:
    """Makes a kernel's arguments, so many inputs side by side, and what it must give to the bit."""
    rng = np.random.default_rng([length, columns, groups, quads])
    words = quads * 4 // inputs
    weights = rng.integers(-128, 128, (groups, words, TILE, inputs)).astype(np.int8)
    tokens = rng.integers(-127, 128, (length, groups, words, inputs)).astype(np.int8)
    weights[0], tokens[0] = -128, 127  # the largest sums
    steps = rng.normal(size=(groups, TILE)).astype(np.float16)
    scales = rng.normal(size=(length, groups)).astype(np.float32)
    expected = expected_products(weights, steps, tokens, scales)
    packed = np.moveaxis(pack_tiles(tokens), -1, -2)
    stride = 4 * (columns + 3)
    about = numbers([stride, length, columns, groups, quads])
    arguments = [weights, steps, packed, pack_tiles(scales)]
    beyond = np.full((length, columns + 3), -1, np.float32)
    beyond[:, :columns] = expected[:, :columns]
    return [*(np.ascontiguousarray(one).tobytes() for one in arguments), about], beyond


@pytest.mark.parametrize("cpu", CPUS)
def test_the_kernel_is_exact(cpu: str, arm64_program: object) -> None:
    """For whole and cut tiles of rows and tokens, and every number of groups that is left over."""
    size = {"sme128": "16", "sme256": "32", "sme512": "64"}[cpu.split(",")[1].partition("=")[0]]
    with Components(need_sme(), "-cpu", cpu, str(arm64_program)) as running:
        assert running.call("matrix").decode() == size
        for length in (1, 3, 4, 9, 16, 17, 33):
            for columns in (16, 1, 5, 8, 13):
                for groups, quads in ((1, 8), (2, 1), (3, 32), (4, 8), (9, 8), (1, 24), (4, 56)):
                    arguments, expected = case(length, columns, groups, quads)
                    out = np.frombuffer(running.call("outer", *arguments, "outer"), np.float32)
                    np.testing.assert_array_equal(out.reshape(expected.shape), expected)


def test_what_is_wrong_with_a_unit_is_said(arm64_program: object) -> None:
    program = str(arm64_program)
    with Components(need_qemu(), "-cpu", "cortex-a76", program) as running:  # it has none
        assert running.call("matrix") == b"its instructions trap"
        assert running.call("matrix") == b"its instructions trap"
    with Components(need_sme(), "-cpu", TOO_WIDE, program) as running:
        assert running.call("matrix") == b"its vectors have 128 bytes; expected 16, 32 or 64"


def test_a_unit_that_computes_wrongly_is_found(arm64_program: object) -> None:
    """Debian 12's emulator."""
    system = shutil.which(QEMU_PROGRAM)
    if system is None or emulates_sme(system):
        pytest.skip("the system has no qemu that computes SMOPA wrongly")
    with Components(system, "-cpu", "max", str(arm64_program)) as running:
        assert running.call("matrix") == b"its results are wrong"


def results(client: EngineClient, built: Built) -> list[Any]:
    """Computes with 4-bit and int8 weights: several tokens, one token, and a picture."""
    client.load(built.bundle, window=128)
    hidden = np.random.default_rng(0).normal(size=(37, 256)).astype(np.float32)
    options = {Field.PER_LAYER: False, Field.WINDOW: 60, Field.PINNED: 4}
    pixels = client.tap(Tap.PREPROCESS, random_picture(80, 90))
    patches = client.tap(Tap.VISION_EMBED, pixels)
    block = client.tap(Tap.VISION_BLOCK, patches, {"index": 0})
    question = [Message(role="user", content="What colour is the shape?")]
    image = client.image(random_picture(80, 90))[Field.IMAGE]
    return [
        *(client.tap(Tap.LOGITS, hidden[:n]) for n in (1, 3, 4, 7, 8, 37)),
        client.tap(Tap.LAYERS, hidden[None], options),
        patches,
        block,
        client.tap(Tap.RESAMPLER, block),
        client.chat(question, image=image, max_new_tokens=6).ids,
    ]


@pytest.mark.parametrize("cpu", CPUS)
def test_blocks_give_the_same_bits(cpu: str, phone_built: Built) -> None:
    """As those of the same phone without the unit."""
    need_sme()
    without, with_unit = (
        EngineClient(engine_command(QEMU, phone_built.program, cpu=one))
        for one in ("max,sme=off", cpu)
    )
    with without, with_unit:
        assert (
            without.hello[Field.KINDS][0] == "i8mm_" and with_unit.hello[Field.KINDS][0] == "sme_"
        )
        assert with_unit.hello[Field.REFUSED] == []
        pairs = zip(results(without, phone_built), results(with_unit, phone_built), strict=True)
        for expected, actual in pairs:
            np.testing.assert_array_equal(actual, expected)


def test_the_next_kind_is_taken_and_said_once(
    phone_built: Built, caplog: pytest.LogCaptureFixture
) -> None:
    need_sme()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with EngineClient(engine_command(QEMU, phone_built.program, cpu=TOO_WIDE)) as client:
                assert client.hello[Field.KINDS][0] == "i8mm_"
                assert "sme" not in client.hello[Field.CPU_FEATURES]
                (said,) = client.hello[Field.REFUSED]
    assert said == (
        "the matrix unit (SME) is not used: its vectors have 128 bytes; expected 16, 32 or 64"
    )
    assert [r.getMessage() for r in caplog.records if said in r.getMessage()] == [
        f"android-arm64: {said}"
    ]


def test_a_user_names_the_processor(phone_built: Built) -> None:
    place = open_place(
        Bundle.open(phone_built.bundle), EngineOptions(engine=QEMU, cpu="cortex-a53")
    )
    with place.start() as client:
        assert client.hello[Field.KINDS][0] == "neon_"
