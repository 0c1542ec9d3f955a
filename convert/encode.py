"""Writes a bundle's weights: reads and encodes one planned tensor at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from convert.bundle.journal import Journal
from convert.bundle.manifest import FileRecord
from convert.bundle.plan import Plan, PlannedTensor
from convert.bundle.weights_file import Array
from convert.bundle.weights_writer import WeightsWriter
from convert.calibrate.store import CalibratedWeights
from convert.checkpoint.reader import Checkpoint
from convert.support.progress import Progress
from quantize.errors import CheckpointError
from quantize.fast import CHUNK_VALUES, quantize_int8_fast, quantize_weight
from quantize.layout import pack_int8_tiles, pack_tiles, tile_f16
from quantize.methods import Method, find_method
from quantize.schemes import GroupScheme, all_finite, row_chunks

Read = Callable[[str], Tensor]  # a checkpoint's tensor by its name


def write_weights(
    checkpoint: Checkpoint,
    plan: Plan,
    path: Path,
    progress: Progress,
    calibrated: CalibratedWeights | None = None,
    journal: Journal | None = None,
) -> FileRecord:
    """Writes a plan's weights file, or the rest of it; one tensor is in memory at a time.

    Args:
        checkpoint: what to convert.
        plan: how each tensor is stored.
        path: the weights file.
        progress: receives the bytes written.
        calibrated: what calibration made; required if the recipe's method calibrates.
        journal: lists the tensors that are there already, and records each new one.

    Raises:
        CheckpointError: a tensor holds NaN, infinity, or a value beyond its format.
    """
    method = find_method(plan.recipe.method)
    assert (calibrated is not None) == method.calibrated, (
        "calibrated weights come with a method that calibrates"
    )
    ends = list(accumulate(len(tensor.stored) for tensor in plan.tensors))
    marks = [mark for mark in journal.marks if mark.tensors in ends] if journal else []
    with WeightsWriter(path, plan.stored, marks) as writer:
        if journal is not None:
            journal.begin(writer.kept)
        first = 0 if writer.kept is None else ends.index(writer.kept.tensors) + 1
        missing = plan.tensors[first:]
        made = {t.name for t in missing if calibrated is not None and calibrated.has(t.name)}
        read = ReadOnce(checkpoint.read, [t for t in missing if t.name not in made])
        total = plan.nbytes
        done = sum(tensor.nbytes for tensor in plan.tensors[:first])
        for tensor in missing:
            progress("weights", done, total)
            stored = None if calibrated is None else encode_calibrated(tensor, plan, calibrated)
            if stored is None:
                weight = read_weight(checkpoint, tensor, read)
                stored = encode(weight, tensor, plan.recipe.scheme, method)
            for spec, values in zip(tensor.stored, stored, strict=True):
                writer.write(spec.name, values)
            if journal is not None:
                writer.mark(journal.add)
            done += tensor.nbytes
        digest = writer.sha256()
    progress("weights", total, total)
    return FileRecord(size=total, sha256=digest)


class ReadOnce:
    """Reads each tensor of a checkpoint once, even if several planned tensors need it.

    A tensor is kept in memory until the last planned tensor that needs it has been made.
    """

    def __init__(self, read: Read, tensors: Sequence[PlannedTensor]) -> None:
        """Args: read: reads the checkpoint. tensors: those that will be made, in any order."""
        self._read = read
        self._uses = Counter(source for tensor in tensors for source in tensor.rule.sources)
        self._kept: dict[str, Tensor] = {}

    def __call__(self, name: str) -> Tensor:
        """Returns a tensor by its name."""
        values = self._kept.pop(name) if name in self._kept else self._read(name)
        self._uses[name] -= 1
        if self._uses[name] > 0:
            self._kept[name] = values
        return values


def read_weight(checkpoint: Checkpoint, tensor: PlannedTensor, read: Read | None = None) -> Array:
    """Reads a planned tensor: float32 if it is stored as float32, float16 otherwise.

    Args:
        checkpoint: where it is read from.
        tensor: the planned tensor.
        read: reads a tensor of the checkpoint; None: `checkpoint.read`.

    Raises:
        CheckpointError: it holds NaN, infinity, or a value beyond its format.
    """
    dtype = torch.float32 if tensor.format == "f32" else torch.float16
    try:
        weight: Array = (
            tensor.rule.make_as_stored(read or checkpoint.read).to(dtype).contiguous().numpy()
        )
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from error
    if dtype == torch.float16 and not all_finite(weight):
        count = np.count_nonzero(~np.isfinite(weight))
        raise CheckpointError(
            f"{checkpoint.path}: {', '.join(tensor.rule.sources)}: {count} values are beyond "
            f"float16's {np.finfo(np.float16).max:.0f}; is the checkpoint damaged?"
        )
    return weight


def encode(
    weight: Array, tensor: PlannedTensor, scheme: GroupScheme, method: Method
) -> list[Array]:
    """Converts a planned tensor, as `read_weight` returns it, into its stored form.

    Returns:
        The arrays that `tensor.stored` describes, in that order.
    """
    if tensor.format not in ("q4", "q8"):
        return [tile_f16(weight) if tensor.format == "f16_tiled" else weight]
    code = np.uint8 if tensor.format == "q4" else np.int8
    weights, scales = (
        np.empty(spec.shape, dtype)
        for spec, dtype in zip(tensor.stored, (code, np.float16), strict=True)
    )
    first, (count, columns) = 0, weight.shape
    for rows in row_chunks(count, columns, CHUNK_VALUES):
        if tensor.format == "q4":
            q, scale = quantize_weight(weight[rows], scheme, method, name=tensor.name)
            q_weight, q_scale = pack_tiles(q, scale, scheme)
        else:
            q, scale = quantize_int8_fast(weight[rows], name=tensor.name)
            q_weight, q_scale = pack_int8_tiles(q, scale)
        last = first + len(q_weight)
        weights[first:last], scales[first:last] = q_weight, q_scale
        first = last
    return [weights, scales]


def encode_calibrated(
    tensor: PlannedTensor, plan: Plan, calibrated: CalibratedWeights
) -> list[Array] | None:
    """Returns the stored form of a tensor that calibration changed; None for any other."""
    values = calibrated.replaced(tensor.name)
    if values is not None:
        return [values.astype(np.float16 if tensor.format == "f16" else np.float32)]
    codes = calibrated.codes(tensor.name) if tensor.format == "q4" else None
    return None if codes is None else [*pack_tiles(*codes, plan.recipe.scheme)]
