"""Group quantization: what a scheme is, and its arithmetic in numpy.

A group is `group_size` neighbours along the input dimension K; it shares one float16 scale.
`q4f16_1` is MLC-LLM's scheme of that name, bit for bit: all arithmetic is float16, and the value
is rounded (half to even) after the zero point was added. A float16 operation is computed here as
the float32 operation rounded to float16, which for +, -, *, / is the same number: float32 has
more than twice the digits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantize.errors import CheckpointError, ConfigError, ShapeError

_EXPONENT = np.uint16(0x7C00)  # of float16
_PIECE = 1 << 18  # values
RECIPES = Path(__file__).resolve().parent.parent / "configs" / "quant"

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class GroupScheme:
    """Symmetric group quantization: value = (code - zero_point) * scale."""

    name: str
    bits: int
    group_size: int  # values that share a scale
    zero_point: int  # the code of 0
    max_code: int  # the largest code that the quantizer writes; a decoder knows all 2**bits

    def __post_init__(self) -> None:
        """Checks the rules between fields, and that the packed layouts know the format."""
        for field in fields(self):
            kind = str if field.name == "name" else int
            if type(getattr(self, field.name)) is not kind:
                raise ConfigError(
                    f"recipe {self.name}: {field.name} is {getattr(self, field.name)!r}; "
                    f"expected {kind.__name__}"
                )
        if (self.bits, self.group_size) != (4, 32):
            raise ConfigError(
                f"recipe {self.name}: bits {self.bits} in groups of {self.group_size}; "
                "the weight layout holds 4 bits in groups of 32"
            )
        if not 0 < self.zero_point < self.max_code < 2**self.bits:
            raise ConfigError(
                f"recipe {self.name}: zero_point {self.zero_point} and max_code {self.max_code} "
                f"must rise within 0..{2**self.bits - 1}"
            )

    @staticmethod
    def load(name: str) -> GroupScheme:
        """Reads the recipe `configs/quant/NAME.json`.

        Raises:
            ConfigError: no such recipe, or a missing, unknown or contradictory key.
        """
        known = sorted(p.stem for p in RECIPES.glob("*.json"))
        if name not in known:
            raise ConfigError(f"quantization recipe {name!r} is unknown; known: {', '.join(known)}")
        raw = json.loads((RECIPES / f"{name}.json").read_text("utf-8"))
        for key in ("method", "tensors"):  # convert/bundle/plan.py reads these
            raw.pop(key, None)
        expected = {field.name for field in fields(GroupScheme)}
        if set(raw) != expected:
            raise ConfigError(
                f"recipe {name}: has the keys {', '.join(sorted(raw))}; "
                f"expected {', '.join(sorted(expected))}"
            )
        return GroupScheme(**raw)


def quantize_groups(weight: Array, scheme: GroupScheme, *, name: str) -> tuple[Array, Array]:
    """Quantizes groups of `scheme.group_size` along the input dimension.

    The error of a value is at most `error_bound`. A group of zeros gets scale 0 and code 0.

    Args:
        weight: (N, K) float16; a wider type is rounded by the caller, who knows what it was.
        scheme: the number format.
        name: the tensor, for messages.

    Returns:
        q (N, K) uint8 codes; scale (N, K/G) float16.

    Raises:
        ShapeError: not a matrix, or K is not a multiple of the group size.
        CheckpointError: a value is not finite.

    Source: MLC-LLM group_quantization.py; bits held by tests/golden/mlc-q4f16_1.
    """
    groups = split_groups(weight, scheme, name)
    scale = (np.abs(groups).max(-1, initial=0) / np.float32(scheme.zero_point)).astype(np.float16)
    with np.errstate(divide="ignore", invalid="ignore"):  # a scale of 0, see below
        ratio = round_to_float16(groups / scale.astype(np.float32)[..., None])
    code = round_to_float16(ratio + np.float32(scheme.zero_point))
    np.rint(code, out=code)
    if not scale.all():
        # Where the scale is 0, so are the values (code 0), or they are too small for any scale
        # (infinite ratios, clipped to either end); both come back as 0.
        np.nan_to_num(code, copy=False, nan=0.0, posinf=scheme.max_code, neginf=0.0)
    np.clip(code, 0, scheme.max_code, out=code)
    return code.astype(np.uint8).reshape(weight.shape), scale


def dequantize_groups(q: Array, scale: Array, scheme: GroupScheme) -> Array:
    """Maps q (N, K) and scale (N, K/G) to (code - zero_point) * scale: (N, K) float32, exact."""
    centred = q.astype(np.float32) - np.float32(scheme.zero_point)
    grouped = centred.reshape(*scale.shape, scheme.group_size)
    return (grouped * scale.astype(np.float32)[..., None]).reshape(q.shape)


def error_bound(weight: Array, scale: Array, scheme: GroupScheme) -> Array:
    """Returns the largest error that the scheme allows for each value: (N, K) float32.

    Half a step; 2**-7 of a step for rounding in float16 (2**-9 for the ratio up to 8, 2**-8 for
    the sum up to 16); and what lies beyond the last code, which happens where a scale is so
    small (subnormal) that its own rounding moves the ends.
    """
    step = np.repeat(scale.astype(np.float32), scheme.group_size, axis=1)
    wide = np.abs(weight.astype(np.float32))
    beyond = np.maximum(wide - scheme.zero_point * step, 0)
    bound: Array = step * np.float32(0.5 + 2**-7) + beyond
    return bound


def split_groups(weight: Array, scheme: GroupScheme, name: str) -> Array:
    """Cuts a weight (N, K) float16 into groups (N, K/G, G) float32; see `check_groups`."""
    check_groups(weight, scheme, name)
    return weight.reshape(weight.shape[0], -1, scheme.group_size).astype(np.float32)


def check_groups(weight: Array, scheme: GroupScheme, name: str) -> None:
    """Checks that a weight (N, K) float16 can be quantized.

    Raises:
        ShapeError: not a matrix, or K is not a multiple of the group size.
        CheckpointError: a value is not finite.
    """
    assert weight.dtype == np.float16, "the scheme's arithmetic starts from float16"
    if weight.ndim != 2 or weight.shape[1] % scheme.group_size:
        raise ShapeError(
            f"{name}: shape {tuple(weight.shape)}; {scheme.name} needs a matrix whose width is a "
            f"multiple of {scheme.group_size}"
        )
    if not all_finite(weight):
        bad = np.argwhere(~np.isfinite(weight))
        row, column = (int(i) for i in bad[0])
        raise CheckpointError(
            f"{name}: {len(bad)} values are not finite in float16, the first at "
            f"[{row}, {column}]; is the checkpoint damaged?"
        )


def all_finite(weight: Array) -> bool:
    """Says whether float16 values hold no infinity and no NaN: none has all exponent bits set."""
    bits = np.ascontiguousarray(weight).reshape(-1).view(np.uint16)
    # Piece by piece: the memory for all exponents at once would cost more than looking at them.
    exponents = np.empty(min(bits.size, _PIECE), np.uint16)
    for start in range(0, bits.size, _PIECE):
        piece = bits[start : start + _PIECE]
        if np.bitwise_and(piece, _EXPONENT, out=exponents[: piece.size]).max() == _EXPONENT:
            return False
    return True


def row_chunks(rows: int, columns: int, values: int = 1 << 22) -> Iterator[slice]:
    """Cuts a matrix into runs of whole 16-row tiles of about `values` values, in order.

    What quantizes and packs run by run needs a few hundred MiB less than the whole at once.
    """
    step = max(16, values // max(columns, 1) // 16 * 16)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def round_to_float16(values: Array) -> Array:
    """Rounds float32 values to float16's, half to even; they stay float32."""
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)
