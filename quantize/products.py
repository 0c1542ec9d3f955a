"""Products of large float32 matrices, in bfloat16 where the processor has instructions for it.

These take half the time of float32 (AVX512-BF16) or less (AMX). Operands and results are rounded to
8 bits of precision; inside, sums are float32. That suits what a linear gives for single tokens: its
rounding is random, and evens out over many. It does not suit sums over tokens: with inputs of very
unequal power, a rounded sum leads GPTQ's corrections far astray (`test_correction_is_the_solution`
fails by 98 %).
"""

from __future__ import annotations

import torch
from torch import Tensor


def has_fast_bfloat16() -> bool:
    """Says whether `product` computes in bfloat16 here."""
    cpu = torch.cpu
    return cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()


def shorten(values: Tensor) -> Tensor:
    """Returns a float32 operand in the precision that `product` computes in.

    It saves time to convert what is used several times once.
    """
    return values.bfloat16() if has_fast_bfloat16() else values


def product(one: Tensor, other: Tensor) -> Tensor:
    """Multiplies matrices (M, K) and (K, N), each as it is or by `shorten`: (M, N) float32."""
    return (shorten(one) @ shorten(other)).float()
