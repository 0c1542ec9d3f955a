"""Which tensors cost most, and what it takes to keep them better: advice with a recipe.

Each part of the model (all layers' qkv, the token embedding, …) is stored in its format and in
int8, one part at a time with the rest in full precision, and the logits are compared. That is the
measurement of `convert --target-size`. The advice is about single tensors of single layers: see
`runtime.verify.measure.raising`.

GPTQ's codes make good what the tensors before them lose, and they fit the samples. A tensor that is
replaced takes that away from those behind it, so every one seems to lose in int8, whatever it would
gain in a new calibration. A bundle of GPTQ is therefore judged without calibration, by searched
scales.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from convert.bundle.plan import Plan, make_plan, stored_specs
from convert.bundle.weights_file import WeightsFile
from convert.calibrate.samples import CalibrationSample
from convert.calibrate.target_size import (
    PARTS,
    few_samples,
    measure_losses,
    part_formats,
    with_tensors,
)
from convert.checkpoint.reader import Checkpoint
from convert.encode import write_weights
from convert.support.json_text import json_text
from convert.support.progress import Progress
from convert.support.scratch import scratch_folder
from convert.support.whole_file import whole_file
from quantize.methods import find_method
from runtime.verify.files.weights import BundleTensors, StoredTensors
from runtime.verify.measure.raising import RAISED, Raising, TensorSet

_ENOUGH = 0.5  # of the most that a set gains
_SET_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # tensors
_NAMED = 4  # tensors that the advice names


@dataclass(frozen=True)
class PartCost:
    """What a part of the model costs in its format, and in int8."""

    part: str
    tensors: int
    format: str
    kl_nats: float  # with the rest in full precision
    int8_kl_nats: float
    int8_bytes: int  # more than now


@dataclass(frozen=True)
class TensorGain:
    """What a single tensor would gain in int8."""

    name: str
    gain_nats: float  # of KL divergence, estimated
    int8_bytes: int  # more than now


@dataclass(frozen=True)
class Trial:
    """Tensors that were stored in int8 together, and what that gave."""

    tensors: list[str]
    kl_nats: float  # measured
    int8_bytes: int  # more than now


@dataclass(frozen=True)
class Sensitivity:
    """The costliest part and the tensor that gains most first, and the advice that follows."""

    parts: list[PartCost]
    tensors: list[TensorGain]
    kl_nats: float  # of the model as it is stored; of GPTQ's without calibration
    trials: list[Trial]
    raised: list[str]  # tensors that the advice stores in int8
    advice: str  # one sentence
    recipe: str  # the file's path; empty without advice


def measure_sensitivity(
    checkpoint: Checkpoint,
    stored: StoredTensors,
    samples: Sequence[CalibrationSample],
    file: Path,
    progress: Progress,
) -> Sensitivity:
    """Measures what costs most, and writes a recipe that stores the tensors that gain most in int8.

    Args:
        checkpoint: that the bundle was made from.
        stored: the bundle's tensors.
        samples: conversations whose logits are compared.
        file: for the recipe, which `convert --quant` takes.
        progress: receives the layers done.

    Raises:
        CalibrationError: a sample does not suit the model.
        OutputFileError: the file's path is taken by what is no file.
    """
    plan = stored.plan
    losses = measure_losses(checkpoint, plan.recipe, samples, progress)
    parts = _costs(plan, part_formats(checkpoint, plan.recipe), losses)
    compensated = find_method(plan.recipe.method).compensate
    with _as_judged(checkpoint, stored, progress) as judged:
        raising = Raising(checkpoint, judged, few_samples(samples, checkpoint), progress)
        gains = _gains(plan, raising.estimate())
        able = [gain for gain in gains if gain.gain_nats > 0]
        measured = raising.measure([frozenset(), *_sets(able)])
    before = measured.pop(frozenset())
    more = {gain.name: gain.int8_bytes for gain in gains}
    trials = [
        Trial([gain.name for gain in able if gain.name in one], kl, sum(more[n] for n in one))
        for one, kl in measured.items()
    ]
    chosen = _choose(before, trials)
    if chosen is None:
        advice = "no tensor in 4 bits gains from int8"
        return Sensitivity(parts, gains, before, trials, [], advice, "")
    when = ", before calibration," if compensated else ""
    advice = (
        f"raising {_listed(chosen.tensors)} to int8 lowers KL{when} "
        f"from {before:.3g} to {chosen.kl_nats:.3g} nats for {chosen.int8_bytes / 1e6:.3g} MB"
    )
    why = "gains most in int8, says verify --sensitivity"
    source = with_tensors(plan.recipe, dict.fromkeys(chosen.tensors, RAISED), why).source
    with whole_file(file) as partial:
        partial.write_text(json_text(source, indent=2) + "\n", "utf-8")
    return Sensitivity(parts, gains, before, trials, chosen.tensors, advice, str(file))


@contextmanager
def _as_judged(
    checkpoint: Checkpoint, stored: StoredTensors, progress: Progress
) -> Iterator[StoredTensors]:
    """Yields the tensors that tensors in int8 are compared with; see the module."""
    recipe = stored.plan.recipe
    if not find_method(recipe.method).compensate:
        yield stored
        return
    plan = make_plan(checkpoint.config, checkpoint.untied_head, recipe.with_method("mse"))
    with scratch_folder() as folder:
        file = folder / "weights"
        write_weights(checkpoint, plan, file, progress)
        yield BundleTensors(plan, WeightsFile(file))


def _costs(
    plan: Plan, sizes: Mapping[str, Mapping[str, int]], losses: Mapping[tuple[str, str], float]
) -> list[PartCost]:
    """Returns the parts whose tensors have one format, by what they cost."""
    costs = []
    for part, by_format in sizes.items():
        mine = [t for t in plan.tensors if any(fnmatchcase(t.name, p) for p in PARTS[part])]
        formats = {tensor.format for tensor in mine}
        if len(formats) != 1 or RAISED not in by_format:
            continue
        (form,) = formats
        now, then = losses.get((part, form), 0.0), losses.get((part, RAISED), 0.0)
        more = by_format[RAISED] - by_format.get(form, by_format[RAISED])
        costs.append(PartCost(part, len(mine), form, now, then, more))
    return sorted(costs, key=lambda cost: -cost.kl_nats)


def _gains(plan: Plan, estimates: Mapping[str, float]) -> list[TensorGain]:
    """Returns the tensors with an estimate, those that gain most first."""
    found = []
    for tensor in plan.tensors:
        if tensor.name in estimates:
            specs = stored_specs(tensor.name, tensor.rule.shape, RAISED, plan.recipe.scheme)
            more = sum(spec.nbytes for spec in specs) - tensor.nbytes
            found.append(TensorGain(tensor.name, estimates[tensor.name], more))
    return sorted(found, key=lambda gain: -gain.gain_nats)


def _sets(able: Sequence[TensorGain]) -> list[TensorSet]:
    """Returns the first few and the first many of two orders: by gain, and by gain for a byte.

    A large tensor, such as the token embedding, comes first in one and last in the other.
    """
    sizes = [n for n in _SET_SIZES if n < len(able)] + [len(able)] * bool(able)
    by_byte = sorted(able, key=lambda gain: -gain.gain_nats / gain.int8_bytes)
    orders = [[gain.name for gain in order] for order in (able, by_byte)]
    return list(dict.fromkeys(frozenset(order[:n]) for n in sizes for order in orders))


def _choose(before: float, trials: Sequence[Trial]) -> Trial | None:
    """Returns the smallest set that gains enough; None where none gains."""
    best = max((before - trial.kl_nats for trial in trials), default=0.0)
    if best <= 0:
        return None
    enough = [trial for trial in trials if before - trial.kl_nats >= _ENOUGH * best]
    return min(enough, key=lambda trial: (trial.int8_bytes, trial.kl_nats))


def _listed(names: Sequence[str]) -> str:
    """Returns the number of tensors, with the names of the first."""
    count = len(names)
    rest = f" and {count - _NAMED} more" if count > _NAMED else ""
    return f"{count} tensor{'s' * (count > 1)} ({', '.join(names[:_NAMED])}{rest})"
