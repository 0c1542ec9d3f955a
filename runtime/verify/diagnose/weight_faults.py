"""What is wrong with a stored tensor, in words."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from convert.bundle.manifest import WEIGHTS, Bundle
from convert.bundle.plan import PlannedTensor
from convert.checkpoint.reader import Checkpoint
from quantize.layout import TILE_ROWS
from quantize.methods import find_method
from runtime.reference import metrics
from runtime.reference.arithmetic import hold_in_format, round_to_format
from runtime.reference.lazy_weights import GroupCodes
from runtime.verify.check import Cause, Check
from runtime.verify.files.weights import hold_stored

_MANY = 8  # causes of one kind that a reader wants to see
_ENOUGH_DB = 60.0  # for formats that lose next to nothing
_FACTOR = 0.01  # a smaller one is rounding, not a missing factor
_LARGE = 1e3  # more, and float16 may not hold the products


def weight_causes(
    failed: Collection[Check], bundle: Bundle, checkpoint: Checkpoint, margin_db: float
) -> list[Cause]:
    """Names the tensors, and the files, that are not what the checkpoint gives.

    Args:
        failed: checks that did not pass; those of other stages do not count.
        bundle: as it is stored.
        checkpoint: what it was made from.
        margin_db: by how much a tensor may lose more than its format does.
    """
    checks = {check.name: check for check in failed if check.stage in ("codes", "weights")}
    wrong = [tensor for tensor in bundle.plan.tensors if tensor.name in checks]
    files = [check.name for check in failed if check.stage == "files"]
    causes = [
        Cause(f"files: {name}", "its SHA-256 is not the manifest's")
        for name in files
        if name != WEIGHTS or not wrong
    ]
    if len(wrong) > max(_MANY, len(bundle.plan.tensors) // 2):
        where = f"weights: {len(wrong)} of {len(bundle.plan.tensors)} tensors"
        why = "they are not this checkpoint's; is it the one that the bundle was made from?"
        return [*causes, Cause(where, why)]
    for tensor in wrong[:_MANY]:
        check = checks[tensor.name]
        loss = f"{check.value:.3g} dB against the checkpoint, expected {check.expected:.3g} dB"
        found = _describe(tensor, wrong, bundle, checkpoint, margin_db)
        causes.append(Cause(f"weights: {tensor.name}", found or loss))
    if len(wrong) > _MANY:
        rest = ", ".join(tensor.name for tensor in wrong[_MANY:])
        causes.append(Cause(f"weights: {len(wrong) - _MANY} more tensors", rest))
    return causes


def _describe(
    tensor: PlannedTensor,
    wrong: Sequence[PlannedTensor],
    bundle: Bundle,
    checkpoint: Checkpoint,
    margin_db: float,
) -> str | None:
    """Says what a tensor holds instead; None if that is only something else."""
    scheme = bundle.plan.recipe.scheme
    original = tensor.rule.make(checkpoint.read)
    held = hold_stored(bundle.weights(), tensor, scheme)
    stored = held.float()
    if not bool(stored.isfinite().all()):
        count = int((~stored.isfinite()).sum())
        return f"{count:,} of {stored.numel():,} values are not finite"

    def fits(candidate: Tensor, least: Callable[[float], float]) -> bool:
        """Says whether the tensor holds that matrix, by how well its format could."""
        rounded = round_to_format(candidate, tensor.format, scheme, tensor.name)
        possible = min(metrics.sqnr_db(candidate, rounded), _ENOUGH_DB)
        return metrics.sqnr_db(candidate, stored) >= least(possible)

    def half(possible: float) -> float:
        return possible / 2  # another matrix has nothing in common with it

    for other in wrong:
        if other is not tensor and other.rule.shape == tensor.rule.shape:
            if fits(other.rule.make(checkpoint.read), half):
                return f"holds what belongs into {other.name}"
    if original.dim() == 2 and original.shape[0] == original.shape[1]:
        if fits(original.T.contiguous(), half):
            return "is transposed"
    if not bool(stored.any()):
        return "holds zeros only"
    factor = float((stored * original).sum() / original.square().sum())
    named = abs(factor - 1) > _FACTOR and abs(factor) < _LARGE
    if named and fits(original * factor, lambda db: db - margin_db):
        return f"is {factor:.4g} times what it should be"
    if find_method(bundle.plan.recipe.method).search and tensor.format == "q4":
        return None  # its codes are not those of plain rounding anyway
    plain = hold_in_format(original, tensor.format, scheme, tensor.name)
    if isinstance(held, GroupCodes) and isinstance(plain, GroupCodes):
        return _compare_codes(held, plain)
    return _compare_values(stored, plain.float())


def _compare_codes(held: GroupCodes, plain: GroupCodes) -> str:
    """Says how codes and scales differ from those of plain rounding."""
    parts = []
    scales, codes = held.scale != plain.scale, held.codes != plain.codes
    if bool(scales.any()):
        # Neighbouring float16 numbers of one sign are neighbouring whole numbers.
        steps = [group.scale.half().view(torch.int16).int() for group in (held, plain)]
        worst = int((steps[0] - steps[1]).abs().max())
        by = "one step" if worst == 1 else f"up to {worst:,} steps"
        parts.append(f"{_count(scales, 'scales')} off by {by} of float16")
    if bool(codes.any()):
        worst = int((held.codes.int() - plain.codes.int()).abs().max())
        parts.append(f"{_count(codes, 'codes')} off by {'up to ' if worst > 1 else ''}{worst}")
    return "; ".join(parts)


def _compare_values(stored: Tensor, rounded: Tensor) -> str:
    worst = float((stored - rounded).abs().max())
    return f"{_count(stored != rounded, 'values')} off by up to {worst:.3g}"


def _count(wrong: Tensor, what: str) -> str:
    """Counts what is wrong of (N, ...), and says where: the one place, or which tiles of rows."""
    count, places = int(wrong.sum()), wrong.nonzero()
    text, first = f"{count:,} of {wrong.numel():,} {what}", places[0].tolist()
    if count == 1:
        return f"{text} (at {first}) is"
    tiles = len(set((places[:, 0] // TILE_ROWS).tolist()))
    return f"{text} (in {tiles} of {-(-len(wrong) // TILE_ROWS)} tiles, first at {first}) are"
