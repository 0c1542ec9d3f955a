import numpy as np
import pytest

from quantize.activations import multiply_w4a8, quantize_activations
from quantize.errors import ShapeError
from quantize.schemes import GroupScheme, dequantize_groups, quantize_groups

Q4 = GroupScheme.load("q4f16_1")


def test_codes_are_within_half_a_step() -> None:
    x = np.random.default_rng(0).standard_normal((5, 96)).astype(np.float32) * 100
    x[2, 32:64] = 0
    q, scale = quantize_activations(x, 32)
    assert (q.dtype, scale.dtype, scale.shape) == (np.int8, np.float32, (5, 3))
    assert np.abs(q).max() == 127
    assert (scale[2, 1], q[2, 32:64].any()) == (0, False)
    step = np.repeat(scale, 32, axis=1)
    assert (np.abs(q * step - x) <= step * (0.5 + 1e-5)).all()  # 1e-5: float32 rounding at 127


def test_product_is_that_of_the_dequantized_values() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((4, 128)).astype(np.float32)
    q, scale = quantize_groups(rng.standard_normal((24, 128)).astype(np.float16), Q4, name="w")
    codes, x_scale = quantize_activations(x, 32)
    dequantized = (codes.reshape(4, -1, 32) * x_scale[..., None].astype(np.float64)).reshape(4, -1)
    expected = dequantized @ dequantize_groups(q, scale, Q4).astype(np.float64).T
    np.testing.assert_allclose(multiply_w4a8(x, q, scale, Q4), expected, rtol=1e-5, atol=1e-4)


def test_refuses_a_width_without_whole_groups() -> None:
    with pytest.raises(ShapeError, match="not a multiple of 32"):
        quantize_activations(np.zeros((2, 40), np.float32), 32)
