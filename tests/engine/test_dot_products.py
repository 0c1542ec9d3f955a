"""Products in assembly for arm64: dot products and int8 matrix products, and blocks that use them.

No device has run any of this: qemu emulates it.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from runtime.engine_client.client import EngineClient, engine_command
from runtime.engine_client.options import QEMU
from runtime.engine_client.protocol import Field, Tap
from tests.engine.components import Components, numbers
from tests.engine.engines import Built
from tests.engine.test_outer_products import TILE, case, expected_products, pack_tiles
from tests.engine.test_picture import random_picture
from tests.support.needs import need_qemu

LENGTHS = (1, 3, 4, 5, 8, 9, 12, 13, 16, 17, 31, 37)
ZERO_POINT = 7
COLUMNS = (16, 1, 5, 12)
# Parts of a run, whole runs and cut ones; runs of one group; the largest groups; attention's.
GROUPS = ((1, 8), (16, 8), (35, 8), (3, 32), (4, 32), (9, 32), (2, 64), (2, 16), (1, 24), (3, 56))


@pytest.mark.parametrize(("function", "inputs"), [("dot", 4), ("matrix", 8)])
def test_the_kernels_are_exact(function: str, inputs: int, arm64_program: object) -> None:
    """For whole and cut tiles of rows and of tokens, and every kind of block and run."""
    with Components(need_qemu(), "-cpu", "max", str(arm64_program)) as running:
        for length, columns, (groups, quads) in itertools.product(LENGTHS, COLUMNS, GROUPS):
            arguments, expected = case(length, columns, groups, quads, inputs)
            out = np.frombuffer(running.call("outer", *arguments, function), np.float32)
            np.testing.assert_array_equal(out.reshape(expected.shape), expected)


def few_case(length: int, columns: int, groups: int, inputs: int) -> tuple[list[Any], np.ndarray]:
    """Makes the arguments of products of 4-bit codes, and what they must give to the bit."""
    rng = np.random.default_rng([length, columns, groups, inputs])
    codes = rng.integers(0, 16, (groups, 8, TILE, 4)).astype(np.uint8)
    tokens = rng.integers(-127, 128, (length, groups, 8, 4)).astype(np.int8)
    codes[0], tokens[0] = 15, 127  # the largest sums
    steps = rng.normal(size=(groups, TILE)).astype(np.float16)
    scales = rng.normal(size=(length, groups)).astype(np.float32)
    expected = expected_products(codes.astype(int) - ZERO_POINT, steps, tokens, scales)
    offset = -ZERO_POINT * tokens.sum(axis=(2, 3), dtype=np.int32)
    starts = np.repeat(pack_tiles(offset) + np.float32(1.5 * 2**23).view(np.int32), 16 // inputs)
    side_by_side = pack_tiles(tokens.reshape(length, groups, -1, inputs))
    parts = (
        codes[:, :4] | codes[:, 4:] << 4,
        steps,
        np.moveaxis(side_by_side, -1, -2),
        pack_tiles(scales),
        starts.astype(np.int32),
    )
    beyond = np.full((length, columns + 3), -1, np.float32)
    beyond[:, :columns] = expected[:, :columns]
    about = numbers([beyond.strides[0], length, columns, groups])
    return [*(np.ascontiguousarray(part).tobytes() for part in parts), about], beyond


@pytest.mark.parametrize(("function", "inputs"), [("dot", 4), ("matrix", 8)])
def test_the_kernels_of_few_tokens_are_exact(
    function: str, inputs: int, arm64_program: object
) -> None:
    """For every number of tokens, whole and cut tiles of rows, and every kind of run."""
    with Components(need_qemu(), "-cpu", "max", str(arm64_program)) as running:
        for length, columns, groups in itertools.product(range(1, 17), COLUMNS, (1, 2, 16, 17, 35)):
            arguments, expected = few_case(length, columns, groups, inputs)
            out = np.frombuffer(running.call("few", *arguments, function), np.float32)
            np.testing.assert_array_equal(out.reshape(expected.shape), expected)


def test_kinds_give_the_same_bits(phone_built: Built) -> None:
    """Whether products are compiled or in assembly, also of tokens that are too few for that.

    Plain NEON has no int8 products that would be faster for attention, so its pictures are closer.
    """
    kinds = {"i8mm_": "max,sme=off", "dotprod_": "cortex-a76", "neon_": "cortex-a53"}
    rng = np.random.default_rng(1)
    hidden = rng.normal(size=(45, 256)).astype(np.float32)
    picture = random_picture(80, 90)
    found = []
    for kind, cpu in kinds.items():
        command = engine_command(QEMU, phone_built.program, cpu=cpu)
        with EngineClient(command) as client:
            assert client.hello[Field.KINDS][0] == kind
            client.load(phone_built.bundle, window=128)
            lengths = (1, 2, 3, 4, 7, 9, 15, 16, 17, 24, 45)
            results = [client.tap(Tap.LOGITS, hidden[:length]) for length in lengths]
            patches = client.tap(Tap.VISION_EMBED, client.tap(Tap.PREPROCESS, picture))
            block = client.tap(Tap.VISION_BLOCK, patches, {"index": 0})
            found.append([*results, client.tap(Tap.RESAMPLER, patches), block])
    for other in found[1:]:
        for expected, actual in zip(found[0][:-1], other[:-1], strict=True):
            np.testing.assert_array_equal(actual, expected)
    blocks = [results[-1] for results in found]
    np.testing.assert_array_equal(blocks[1], blocks[0])
    error = blocks[2] - blocks[0]
    assert 30 < 10 * np.log10((blocks[2] ** 2).mean() / (error**2).mean()) < 60
