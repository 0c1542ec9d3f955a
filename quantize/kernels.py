"""The inner loops of quantization: kernels.c, compiled for this processor at first use.

In PyTorch every step of a search passes over memory once more: a group's search took about 14 times
as long, and rounding a column 20 times. zig compiles in less than a second, so nothing is kept.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from quantize.errors import ToolkitError
from quantize.schemes import GroupScheme
from quantize.search import DIVISORS

BLOCK = 128  # inputs that `round_block` takes at most, as in kernels.c
_LANES = 16  # groups that kernels.c takes at once
_SOURCE = Path(__file__).with_name("kernels.c")
# Sums keep their order, and division and rounding are IEEE's. Nothing of a C library is used.
_FLAGS = ("-shared", "-fPIC", "-O3", "-nostdlib", "-mcpu=native")
_ARITHMETIC = ("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")


class _Search(ctypes.Structure):
    """How a scale is searched; as in kernels.c."""

    _fields_ = (
        ("divisors", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("lowest", ctypes.c_float),
        ("highest", ctypes.c_float),
        ("symmetric", ctypes.c_int32),
    )


_DIVISORS = (ctypes.c_float * len(DIVISORS))(*DIVISORS)


def search_scales(groups: Tensor, scheme: GroupScheme, importance: Tensor | None) -> Tensor:
    """Returns the scales (..., 1) that lose least, float16 values in float32.

    The bits are those of `quantize.search.search_groups`.

    Args:
        groups: (..., G) float32.
        scheme: the number format.
        importance: of each value's squared error, a shape that fits `groups`; all alike if None.

    Raises:
        ToolkitError: kernels.c cannot be compiled or loaded.
    """
    each = torch.ones(1) if importance is None else importance.float()
    shape, size = groups.shape[:-1], groups.shape[-1]
    # A group's values lie along the first axis here, as in kernels.c: groups are its lanes.
    values = groups.float().reshape(-1, size).T.contiguous()
    each = each.expand(groups.shape).reshape(-1, size).T.contiguous()
    count = math.prod(shape)
    scale = torch.empty(count)

    def part(first: int, last: int) -> None:
        _library().search_scales(
            _data(values), _data(each), *map(ctypes.c_int64, (count, first, last)),
            ctypes.byref(_search_of(scheme)), _data(scale),
        )  # fmt: skip

    _in_parts(part, count)
    return scale.view(*shape, 1)


def round_block(
    weight: Tensor,
    factor: Tensor,
    scheme: GroupScheme,
    q: Tensor,
    scale: Tensor,
) -> Tensor:
    """Rounds a block of inputs column by column; later ones compensate for the errors.

    Args:
        weight: (B, N) float32, inputs in order; B is at most `BLOCK`.
        factor: (B, B) float32, upper: the block's square of GPTQ's factor.
        scheme: the number format.
        q: (B, N) uint8, receives the codes.
        scale: (B/G, N) float16, receives the scales.

    Returns:
        What each input lost, in units of the factor's diagonal: (B, N) float32.

    Raises:
        ToolkitError: kernels.c cannot be compiled or loaded.
    """
    inputs, rows = weight.shape
    assert inputs <= BLOCK and weight.is_contiguous() and q.is_contiguous()
    assert scale.is_contiguous()
    factor = factor.contiguous()
    importance = factor.diagonal() ** -2
    losses = torch.empty(inputs, rows)

    def part(first: int, last: int) -> None:
        _library().round_block(
            _data(weight), ctypes.c_int64(rows), ctypes.c_int64(inputs),
            _data(factor), ctypes.c_int64(factor.stride(0)), _data(importance),
            ctypes.c_int64(first), ctypes.c_int64(last), ctypes.byref(_search_of(scheme)),
            ctypes.c_float(scheme.zero_point), _data(q), _data(scale), _data(losses),
        )  # fmt: skip

    _in_parts(part, rows)
    return losses


def _data(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _search_of(scheme: GroupScheme) -> _Search:
    return _Search(
        divisors=ctypes.addressof(_DIVISORS),
        count=len(DIVISORS),
        lowest=-scheme.zero_point,
        highest=scheme.max_code - scheme.zero_point,
        symmetric=scheme.max_code == 2 * scheme.zero_point,
    )


def _in_parts(part: Callable[[int, int], None], count: int) -> None:
    """Spreads 0..count over as many threads as PyTorch uses."""
    threads = min(torch.get_num_threads(), -(-count // _LANES))
    if threads < 2:
        part(0, count)
        return
    share = -(-count // (threads * _LANES)) * _LANES
    starts = range(0, count, share)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda start: part(start, min(start + share, count)), starts))


@functools.cache
def _library() -> ctypes.CDLL:
    """Compiles and loads kernels.c."""
    with tempfile.TemporaryDirectory(prefix="minicpmv-") as folder:
        output = Path(folder) / "kernels.so"
        command = [sys.executable, "-m", "ziglang", "cc", *_FLAGS, *_ARITHMETIC]
        command += ["-o", str(output), str(_SOURCE)]
        caches = {"ZIG_GLOBAL_CACHE_DIR": folder, "ZIG_LOCAL_CACHE_DIR": folder}
        done = subprocess.run(
            command, env=os.environ | caches, capture_output=True, text=True, check=False
        )
        if done.returncode:
            said = next(iter(done.stderr.strip().splitlines()), "no message")
            raise ToolkitError(f"{_SOURCE}: zig cannot compile it: {said}; try `minicpmv doctor`")
        try:
            return ctypes.CDLL(str(output))
        except OSError as error:
            raise ToolkitError(
                f"{output}: cannot be loaded: {error}; expected a folder that may hold programs; "
                "set TMPDIR to one"
            ) from error
