"""What the benchmark of shapes compares computes the same."""

from __future__ import annotations

import numpy as np
import pytest

from tests.bench.kernel_cases import host_variants
from tests.bench.vision_shapes import Blocks
from tests.support.processor import processor_features

VARIANTS = list(host_variants(processor_features()))


@pytest.mark.skipif(not VARIANTS, reason="needs x86-64 with SSE4.2")
def test_blocks_for_one_shape_are_those_for_any() -> None:
    blocks = Blocks("demo", "q4f16_1", VARIANTS[-1], one_shape=(12, 12))
    for name in blocks.functions:
        one, same, _ = blocks.both(name, ((12, 12), (1, 5)))
        np.testing.assert_array_equal(one.func(*same.args).numpy(), same().numpy())
        with pytest.raises(RuntimeError, match="shape"):
            one.func(*blocks.both(name, ((1, 5),))[1].args)
