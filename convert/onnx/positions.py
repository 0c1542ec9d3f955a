"""Positions of images of several shapes, computed in the graph from an image's rows and columns.

The simplest operators compute them, since runtimes of phones lack the antialiased `Resize`. What
`convert.checkpoint.positions` does in PyTorch, this does in ONNX. Both work in float32, except for
the sine table's angles, which are float64 there.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from convert.onnx.builder import OnnxBuilder

_CUBIC = -0.5  # the parameter of PyTorch's bicubic kernel with antialiasing


def patch_counts(b: OnnxBuilder, pixels: str, patch_size: int) -> tuple[str, str]:
    """Returns rows and columns of patches, each (1,) int64, of pixels (B, 3, height, width)."""
    side = b.constant("patch_size", np.array([patch_size], np.int64))
    counts = []
    for axis, name in ((2, "rows"), (3, "columns")):
        length = b.node("Shape", [pixels], f"positions.{name}.pixels", start=axis, end=axis + 1)
        counts.append(b.node("Div", [length, side], f"positions.{name}"))
    return counts[0], counts[1]


def resampled(b: OnnxBuilder, table: str, counts: tuple[str, str], trained: int, width: int) -> str:
    """Resamples a table (trained * trained, D) to a grid of patches: (P, D).

    Bicubic with antialiasing, as `resample_grid`: rows and columns one after the other, each as a
    product with a matrix of weights.
    """
    across_rows, across_columns = (
        _resize_weights(b, count, trained, f"positions.{name}")
        for count, name in zip(counts, ("rows", "columns"), strict=True)
    )
    x = b.reshape(table, [trained, trained * width])
    x = b.node("MatMul", [across_rows, x], "positions.of_rows")
    x = b.reshape(x, [-1, trained, width])
    x = b.node("MatMul", [across_columns, x], "positions.of_patches")
    return b.reshape(x, [-1, width])


def sines(b: OnnxBuilder, counts: tuple[str, str], width: int) -> str:
    """Makes the sine table of a grid of patches: (P, D), as `sincos_grid`."""
    half = width // 4  # frequencies of one axis
    frequencies = b.constant(
        "frequencies", (10000.0 ** -(np.arange(half) / half)).astype(np.float32)[None]
    )
    rows, columns = counts
    channels = b.constant("width.half", np.array([width // 2], np.int64))
    grid = b.node("Concat", [rows, columns, channels], "keys.grid", axis=0)
    parts = []
    for count, axis, name in ((columns, 0, "keys.columns"), (rows, 1, "keys.rows")):
        angles = b.node("Mul", [_indices(b, count, name), frequencies], f"{name}.angles")
        waves = [b.node(wave, [angles], f"{name}.{wave.lower()}") for wave in ("Sin", "Cos")]
        table = b.node("Concat", waves, f"{name}.table", axis=1)
        where = b.constant(f"axis.{axis}", np.array([axis], np.int64))
        table = b.node("Unsqueeze", [table, where], f"{name}.aligned")
        parts.append(b.node("Expand", [table, grid], f"{name}.spread"))
    return b.reshape(b.node("Concat", parts, "keys.sines", axis=2), [-1, width])


def _resize_weights(b: OnnxBuilder, count: str, trained: int, at: str) -> str:
    """Returns the shares (count, trained) that trained positions have in resampled ones."""
    one = b.constant("one", np.array(1, np.float32))
    total = b.node("Cast", [count], f"{at}.float", to=TensorProto.FLOAT)
    length = b.constant("trained", np.array([trained], np.float32))
    scale = b.node("Div", [length, total], f"{at}.scale")
    half = b.constant("half", np.array(0.5, np.float32))
    centers = b.node("Add", [_indices(b, count, at), half], f"{at}.centers")
    centers = b.node("Mul", [centers, scale], f"{at}.scaled")
    places = b.constant("places", np.arange(trained, dtype=np.float32)[None] + np.float32(0.5))
    distance = b.node("Abs", [b.node("Sub", [places, centers], f"{at}.offsets")], f"{at}.away")
    # Where the grid shrinks, the kernel gets wider.
    stretch = b.node("Max", [scale, one], f"{at}.stretch")
    distance = b.node("Div", [distance, stretch], f"{at}.distance")
    weights = _cubic(b, distance, at)
    axis = b.constant("axis.1", np.array([1], np.int64))
    sums = b.node("ReduceSum", [weights, axis], f"{at}.sums", keepdims=1)
    return b.node("Div", [weights, sums], f"{at}.weights")


def _cubic(b: OnnxBuilder, distance: str, at: str) -> str:
    """Evaluates the bicubic kernel, which is zero from a distance of 2."""
    a = _CUBIC
    near = _polynomial(b, distance, [a + 2, -(a + 3), 0, 1], f"{at}.near")
    two = b.constant("two", np.array(2, np.float32))
    limited = b.node("Min", [distance, two], f"{at}.limited")
    far = _polynomial(b, limited, [a, -5 * a, 8 * a, -4 * a], f"{at}.far")
    is_near = b.node("Less", [distance, b.constant("one", np.array(1, np.float32))], f"{at}.inner")
    return b.node("Where", [is_near, near, far], f"{at}.kernel")


def _polynomial(b: OnnxBuilder, x: str, coefficients: list[float], at: str) -> str:
    """Evaluates a polynomial, highest power first."""
    names = [b.constant(f"factor.{c:g}", np.array(c, np.float32)) for c in coefficients]
    value = names[0]
    for i, name in enumerate(names[1:]):
        product = b.node("Mul", [value, x], f"{at}.{i}.product")
        value = b.node("Add", [product, name], f"{at}.{i}")
    return value


def _indices(b: OnnxBuilder, count: str, at: str) -> str:
    """Returns 0, 1, ... below a count (1,) int64, as a column (count, 1) float32."""
    zero, one = (b.constant(f"index.{i}", np.array(i, np.int64)) for i in (0, 1))
    end = b.node("Squeeze", [count], f"{at}.end")
    indices = b.node("Range", [zero, end, one], f"{at}.range")
    indices = b.node("Cast", [indices], f"{at}.indices", to=TensorProto.FLOAT)
    return b.reshape(indices, [-1, 1])
