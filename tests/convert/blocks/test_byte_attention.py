"""The vision blocks' attention in int8, beside PyTorch; models stand for the engine's products."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from convert.blocks.attention import Heads
from convert.blocks.byte_attention import byte_attention
from convert.blocks.processors import products
from convert.bundle.targets import EMULATOR, HOST, INT8_ATTENTION, PHONE
from convert.engine.compile import Target
from runtime.reference.arithmetic import RoundedAttention
from runtime.reference.vision import VisionAttention
from tests.convert.blocks.kernels import Run, attended, compiled, normal
from tests.engine.stand_ins import load_stand_ins, stand_in
from tests.support.compare import Record, assert_close

TARGETS = (HOST, PHONE, EMULATOR)
MOST = 700
HEADS = [(2, 72), (3, 16), (1, 10), (1, 128)]
# A key; less than a tile; cut tiles, units and groups of keys; several groups, and the most keys.
QUERIES_AND_KEYS = [(1, 1), (9, 7), (5, 33), (17, 64), (3, 257), (16, 300), (33, 513), (2, MOST)]
KINDS = ["amx", "dotprod", "i8mm"]  # tokens as they are; packed, 4 or 8 inputs together


@pytest.fixture(scope="module", autouse=True)
def _stand_ins(tmp_path_factory: pytest.TempPathFactory) -> None:
    load_stand_ins(tmp_path_factory.mktemp("model"))


def _run(kind: str, heads: int, dim: int) -> Run:
    width = heads * dim
    k, v = Heads(2 * width + 1, 1), Heads(2 * width + 1, width + 1)
    by = stand_in(products(kind).several)
    return compiled(byte_attention(heads, dim, Heads(width), k, v, by, MOST))


@pytest.mark.parametrize(("heads", "dim"), HEADS)
def test_it_is_attention(heads: int, dim: int, record_property: Record) -> None:
    """Whatever the order of codes that a function takes, to the bit; as close as int8 is."""
    runs = [_run(kind, heads, dim) for kind in KINDS]
    width = heads * dim
    for queries, keys in QUERIES_AND_KEYS:
        q, packed = normal(queries, width), normal(keys, 2 * width + 1)
        packed[:, 1 : width + 1] += 30 * normal(1, width)  # what all keys have changes nothing
        q[0] = 0  # every key alike
        q[1:2] *= 1e5  # one key has all the weight, as much as 14 bits hold
        first, *others = (np.empty_like(q) for _ in runs)
        for run, out in zip(runs, (first, *others), strict=True):
            run([q, packed, packed], [out])
        for out in others:
            np.testing.assert_array_equal(out, first)
        name, expected = f"{queries} to {keys}", attended(q, packed, heads)
        assert_close(name, first[1:], expected[1:], 0.02, record_property) if queries > 1 else None
        mean = packed[:, width + 1 :].mean(0)
        assert_close(f"{name}, keys alike", first[0], mean, 0.02, record_property)


def test_verify_knows_the_kinds_that_have_it() -> None:
    variants = [variant for name in TARGETS for variant in Target.load(name).variants]
    found = {f"{v.name}_" for v in variants if products(v.products).several is not None}
    assert found == set(INT8_ATTENTION)


@pytest.mark.parametrize("length", [1, 40, 257, 600])
def test_it_is_the_arithmetic_of_verify(length: int, record_property: Record) -> None:
    """Which is written in PyTorch: its exponential is exact, and few codes round the other way."""
    heads, dim = 2, 72
    width = heads * dim
    packed = normal(length, 3 * width)
    packed[:, : 2 * width] *= 2
    model = RoundedAttention(_Packed(heads))
    expected = model(torch.from_numpy(packed)[None])[0]
    by = stand_in(products("dotprod").several)
    columns = [Heads(3 * width, i * width) for i in range(3)]
    out = np.empty((length, width), np.float32)
    compiled(byte_attention(heads, dim, *columns, by, MOST))([packed] * 3, [out])
    assert_close("attention", out, expected, 1e-2, record_property)
    error = ((expected.numpy() - out) ** 2).mean() / (expected.numpy() ** 2).mean()
    assert error < 1e-6, "60 dB"


class _Packed(VisionAttention):
    """Takes queries, keys and values as they are, and leaves what is mixed."""

    def __init__(self, heads: int) -> None:
        nn.Module.__init__(self)
        self.num_heads, self.qkv, self.proj = heads, nn.Identity(), nn.Identity()
