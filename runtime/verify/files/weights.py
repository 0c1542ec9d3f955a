"""The stored files and tensors of an artifact against the checkpoint that they were made from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from convert.bundle.errors import BundleError
from convert.bundle.manifest import FileRecord
from convert.bundle.plan import Plan, PlannedTensor
from convert.bundle.weights_file import WeightsFile
from convert.checkpoint.reader import Checkpoint
from convert.support.progress import Progress
from quantize.layout import unpack_int8_tiles, unpack_tiles, untile_f16
from quantize.methods import find_method
from quantize.schemes import Array, GroupScheme
from runtime.engine_client.place import Device
from runtime.reference import metrics
from runtime.reference.arithmetic import hold_in_format
from runtime.reference.lazy_weights import GroupCodes, Weight
from runtime.reference.parallel import parallel_map
from runtime.verify.check import Check

# What AWQ folds the factors of a layer's norms into.
_FOLLOWERS = {"input_norm.weight": "qkv", "post_norm.weight": "gate_up"}


class StoredTensors(Protocol):
    """The tensors of an artifact: a bundle's, or an MLC package's."""

    @property
    def plan(self) -> Plan:
        """How they are stored."""

    def hold(self, tensor: PlannedTensor) -> Weight:
        """Returns one as codes, or in the dtype that it is stored in."""

    def release(self) -> None:
        """Gives back the memory of what was read."""


class BundleTensors:
    """The tensors of a bundle."""

    def __init__(self, plan: Plan, weights: WeightsFile) -> None:
        """Args: plan: of the bundle. weights: its tensors."""
        self.plan, self._weights = plan, weights

    def hold(self, tensor: PlannedTensor) -> Weight:
        """See `StoredTensors`."""
        return hold_stored(self._weights, tensor, self.plan.recipe.scheme)

    def release(self) -> None:
        """See `StoredTensors`."""
        self._weights.release()


def check_files(
    folder: Path, files: Mapping[str, FileRecord], program: Path, progress: Progress
) -> list[Check]:
    """Compares every file's SHA-256 with the manifest's.

    Args:
        folder: a bundle's or a package's.
        files: those of its manifest.
        program: the compiled code among them.
        progress: counts bytes.

    Raises:
        BundleError: the program was altered; it is not run.
    """
    checks = []
    total, done = sum(record.size for record in files.values()), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress("hash the files", done, total)

    for name, record in files.items():
        same = FileRecord.of(folder / name, advance) == record
        if not same and folder / name == program:
            raise BundleError(
                f"{program}: altered: its SHA-256 is not the manifest's; a program "
                "that is not ours is not run. Convert the checkpoint again"
            )
        checks.append(Check("files", name, "SHA-256 as written", "", float(same), 1, 1, True))
    return checks


def check_brought(place: Device, progress: Progress) -> list[Check]:
    """Compares the files that an engine reads elsewhere with the manifest, too."""
    metric = "SHA-256 as pushed"
    return [
        Check("files", f"{name} on the phone", metric, "", float(same), 1, 1, True)
        for name, same in place.brought(progress).items()
    ]


def check_tensors(
    stored: StoredTensors,
    checkpoint: Checkpoint,
    thresholds: Mapping[str, float],
    progress: Progress,
) -> list[Check]:
    """Decodes every stored tensor and compares it with the checkpoint's.

    A tensor may lose what its format loses with plain rounding, and `loss_margin_db` more;
    calibration moves weights on purpose, by up to `calibrated_margin_db`. Factors that it folded
    into a tensor are estimated from the tensor itself, those of a norm from the matrix behind it,
    whose own noise limits that to `folded_norm_db`. Where a method only rounds, codes and scales
    must be the very ones: a step more or less would hide in the noise.
    """
    tensors = stored.plan.tensors
    total, done = sum(tensor.parameters for tensor in tensors), 0

    def count(tensor: PlannedTensor) -> None:
        nonlocal done
        done += tensor.parameters
        progress("compare weights", done, total)

    checks = parallel_map(
        lambda tensor: _check_tensor(tensor, stored, checkpoint, thresholds),
        tensors,
        count,
    )
    stored.release()  # the models that come need the room
    return list(chain.from_iterable(checks))


def _check_tensor(
    tensor: PlannedTensor,
    artifact: StoredTensors,
    checkpoint: Checkpoint,
    thresholds: Mapping[str, float],
) -> list[Check]:
    recipe = artifact.plan.recipe
    scheme, method = recipe.scheme, find_method(recipe.method)
    original = tensor.rule.make(checkpoint.read)
    held = artifact.hold(tensor)
    plain = hold_in_format(original, tensor.format, scheme, tensor.name)
    same = _share_of_same(held, plain)
    stored = held.float()
    expected = metrics.sqnr_db(original, stored if same == 1 else plain.float())
    moved = method.calibrated and tensor.name.startswith("llm.")
    folded = moved and method.fold
    if folded:
        original = _fold(tensor, original, stored, artifact, checkpoint)
    value = metrics.sqnr_db(original, stored) if folded or same != 1 else expected
    margin = thresholds["calibrated_margin_db" if moved else "loss_margin_db"]
    limit = min(expected, thresholds["exact_db"]) - margin
    if folded and tensor.name.endswith("_norm.weight"):
        limit = min(limit, thresholds["folded_norm_db"])
    if not bool(original.any()):  # no signal to measure noise against
        value = expected = math.inf if torch.equal(original, stored) else -math.inf
    checks = [Check("weights", tensor.name, "SQNR", "dB", value, expected, limit, True)]
    if same is not None and not (method.search and tensor.format == "q4"):
        checks.append(Check("codes", tensor.name, "as rounded", "", same, 1, 1, True))
    return checks


def _share_of_same(stored: Weight, rounded: Weight) -> float | None:
    """Returns which share of codes, or of scales, is the same; None where there are no codes."""
    if not isinstance(stored, GroupCodes) or not isinstance(rounded, GroupCodes):
        return None
    pairs = ((stored.codes, rounded.codes), (stored.scale, rounded.scale))
    return min(int(torch.count_nonzero(a == b)) / a.numel() for a, b in pairs)


def decode_tensor(
    weights: Mapping[str, Array], tensor: PlannedTensor, scheme: GroupScheme
) -> Tensor:
    """Returns an artifact tensor as float32, from whatever format it is stored in."""
    return hold_stored(weights, tensor, scheme).float()


def hold_stored(weights: Mapping[str, Array], tensor: PlannedTensor, scheme: GroupScheme) -> Weight:
    """Returns an artifact tensor as codes, or in the dtype that it is stored in."""
    shape, name = tensor.rule.shape, tensor.name
    if tensor.format not in ("q4", "q8"):
        values = weights[name]
        tiled = tensor.format == "f16_tiled"
        return torch.from_numpy(untile_f16(values, shape[0]) if tiled else np.array(values))
    packed = weights[f"{name}.q_weight"], weights[f"{name}.q_scale"]
    if tensor.format == "q4":
        q, scale = unpack_tiles(*packed, shape[0])
        codes = q.astype(np.int8) - np.int8(scheme.zero_point)
    else:
        codes, scale = unpack_int8_tiles(*packed, shape[0])
    return GroupCodes(torch.from_numpy(codes), torch.from_numpy(scale.astype(np.float32)), shape[1])


def _fold(
    tensor: PlannedTensor,
    original: Tensor,
    stored: Tensor,
    artifact: StoredTensors,
    checkpoint: Checkpoint,
) -> Tensor:
    """Folds factors into a decoder's original tensor, as far as they can be told."""
    if original.dim() == 2:
        rows, columns = _factors(original, stored)
        return original * rows.unsqueeze(-1) * columns
    follower = _FOLLOWERS.get(tensor.name.partition(".layers.")[2].partition(".")[2])
    if follower is None:  # the last norm: nothing is folded into it
        return original
    name = ".".join([*tensor.name.split(".")[:3], follower])
    matrix = next(other for other in artifact.plan.tensors if other.name == name)
    _, columns = _factors(matrix.rule.make(checkpoint.read), artifact.hold(matrix).float())
    return original / columns


def _factors(original: Tensor, stored: Tensor) -> tuple[Tensor, Tensor]:
    """Estimates factors of rows (N,) and columns (K,) by which two matrices (N, K) differ.

    Those of the first rows are 1 on average: of queries and gates, which nothing is folded into.
    """
    rows = torch.ones(len(original))
    columns = torch.ones(original.shape[1])
    for _ in range(3):
        scaled = original * rows.unsqueeze(-1)
        columns = _ratio((stored * scaled).sum(0), scaled.square().sum(0))
        scaled = original * columns
        rows = _ratio((stored * scaled).sum(1), scaled.square().sum(1))
    size = float(rows[: max(1, len(rows) // 3)].mean())
    return rows / size, columns * size


def _ratio(product: Tensor, power: Tensor) -> Tensor:
    return torch.where((power > 0) & (product > 0), product / power, 1.0)
