"""Which tensors cost most, and what it takes to keep them better: advice with a recipe.

Each part of the model (all layers' qkv, the token embedding, …) is stored in its format and in
int8, one part at a time with the rest in full precision, and the logits are compared. That is the
measurement of `convert --target-size`; losses of several parts nearly add up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from convert.bundle.plan import Plan
from convert.calibrate.samples import CalibrationSample
from convert.calibrate.target_size import PARTS, measure_losses, part_formats, with_formats
from convert.checkpoint.reader import Checkpoint
from convert.support.json_text import json_text
from convert.support.progress import Progress
from convert.support.whole_file import whole_file

_FROM, _TO = "q4", "q8"
_ENOUGH = 0.5  # of what all parts together could gain


@dataclass(frozen=True)
class PartCost:
    """What a part of the model costs in its format, and in int8."""

    part: str
    tensors: int
    format: str
    kl_nats: float  # with the rest in full precision
    int8_kl_nats: float
    int8_bytes: int  # more than now

    @property
    def gain_nats(self) -> float:
        """What int8 would save."""
        return self.kl_nats - self.int8_kl_nats


@dataclass(frozen=True)
class Sensitivity:
    """The costliest part first, and the advice that follows."""

    parts: list[PartCost]
    raised: list[str]  # parts that the advice stores in int8
    advice: str  # one sentence
    recipe: str  # the file's path; empty without advice


def measure_sensitivity(
    checkpoint: Checkpoint,
    plan: Plan,
    samples: Sequence[CalibrationSample],
    file: Path,
    progress: Progress,
) -> Sensitivity:
    """Measures what each part costs, and writes a recipe that stores the costliest in int8.

    Args:
        checkpoint: that the bundle was made from.
        plan: of the bundle.
        samples: conversations whose logits are compared.
        file: for the recipe, which `convert --quant` takes.
        progress: receives the layers done.

    Raises:
        CalibrationError: a sample does not suit the model.
        OutputFileError: the file's path is taken by what is no file.
    """
    recipe = plan.recipe
    losses = measure_losses(checkpoint, recipe, samples, progress)
    parts = _costs(plan, part_formats(checkpoint, recipe), losses)
    raised = _choose(parts)
    if not raised:
        return Sensitivity(parts, [], "no tensor in 4 bits gains from int8", "")
    before = sum(part.kl_nats for part in parts)
    after = before - sum(part.gain_nats for part in raised)
    more = sum(part.int8_bytes for part in raised)
    count = sum(part.tensors for part in raised)
    names = [part.part for part in raised]
    tensors = f"{count} tensor{'s' * (count > 1)} ({', '.join(names)})"
    advice = (
        f"raising {tensors} to int8 lowers KL from about {before:.3g} to {after:.3g} nats "
        f"for {more / 1e6:.3g} MB"
    )
    source = with_formats(recipe, dict.fromkeys(names, _TO), losses).source
    with whole_file(file) as partial:
        partial.write_text(json_text(source, indent=2) + "\n", "utf-8")
    return Sensitivity(parts, names, advice, str(file))


def _costs(
    plan: Plan, sizes: Mapping[str, Mapping[str, int]], losses: Mapping[tuple[str, str], float]
) -> list[PartCost]:
    """Returns the parts whose tensors have one format, by what they cost."""
    costs = []
    for part, by_format in sizes.items():
        mine = [t for t in plan.tensors if any(fnmatchcase(t.name, p) for p in PARTS[part])]
        formats = {tensor.format for tensor in mine}
        if len(formats) != 1 or _TO not in by_format:
            continue
        (form,) = formats
        now, then = losses.get((part, form), 0.0), losses.get((part, _TO), 0.0)
        more = by_format[_TO] - by_format.get(form, by_format[_TO])
        costs.append(PartCost(part, len(mine), form, now, then, more))
    return sorted(costs, key=lambda cost: -cost.kl_nats)


def _choose(parts: Sequence[PartCost]) -> list[PartCost]:
    """Returns the 4-bit parts that gain most for a byte, until half of all gain is reached."""
    able = [part for part in parts if part.format == _FROM and part.gain_nats > 0]
    whole, chosen = sum(part.gain_nats for part in able), list[PartCost]()
    for part in sorted(able, key=lambda part: -part.gain_nats / part.int8_bytes):
        if sum(one.gain_nats for one in chosen) >= _ENOUGH * whole:
            break
        chosen.append(part)
    return chosen
