"""The noise floor: what the reference itself loses in the 16 bits that the checkpoint is stored in.

A loss below it is free: whoever runs the original in its own dtype has it, too. The reference in
16 bits goes through the stages beside the others (`runtime.verify.measure.run`). What it loses
depends on the question and not on the bundle, so a file of the reference's results keeps it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import msgspec
import numpy as np
import torch

from convert.checkpoint.reader import Checkpoint
from convert.checkpoint.tensor_tables import EMBEDDING
from runtime.reference.load import load_reference
from runtime.verify.cases import Case
from runtime.verify.measure.kept import Kept
from runtime.verify.measure.logits import Sums
from runtime.verify.measure.results import CaseResult, as_numbers, as_text
from runtime.verify.stages import Stages, TorchStages


@dataclass(frozen=True)
class CaseNoise:
    """What the reference in 16 bits loses in one case."""

    figures: list[tuple[str, str, str, float]]  # stage, name and metric of a check, and its value
    positions: Mapping[str, Sums]  # by kind
    answer: str

    @staticmethod
    def of(result: CaseResult) -> CaseNoise:
        """Takes it from a case that was measured with it."""
        figures = [
            (c.stage, c.name, c.metric, c.noise_floor)
            for c in result.checks
            if c.noise_floor is not None
        ]
        positions = {k: p.half for k, p in result.positions.items() if p.half is not None}
        assert result.answer.half is not None, "measured in 16 bits"
        return CaseNoise(figures, positions, result.answer.half)

    def put(self, result: CaseResult) -> CaseResult:
        """Returns a case that was measured without it, with it."""
        floors = {tuple(key): value for *key, value in self.figures}
        return replace(
            result,
            checks=[
                replace(c, noise_floor=floors.get((c.stage, c.name, c.metric)))
                for c in result.checks
            ],
            positions={k: replace(p, half=self.positions[k]) for k, p in result.positions.items()},
            answer=replace(result.answer, half=self.answer),
        )


class NoiseFloor:
    """The reference in 16 bits, and what is known of it."""

    def __init__(self, load: Callable[[], Stages], kept: Kept | None = None) -> None:
        """Args: load: the model in 16 bits. kept: results of an earlier run, if any."""
        self._load, self._kept = load, kept

    @cached_property
    def stages(self) -> Stages:
        """The model, loaded when it is first needed."""
        return self._load()

    def known(self, cases: Sequence[Case]) -> dict[str, CaseNoise] | None:
        """Returns what an earlier run measured, by the cases' digests; None unless it did all."""
        if self._kept is None:
            return None
        found = {}
        for case in cases:
            values = self._kept.get(_name(case))
            if values is None:
                return None
            numbers = as_numbers(json.loads(values.tobytes()))
            found[case.digest] = msgspec.convert(numbers, CaseNoise)
        return found

    def add(self, case: Case, result: CaseResult) -> None:
        """Keeps what was measured."""
        if self._kept is not None:
            text = json.dumps(as_text(asdict(CaseNoise.of(result)))).encode()
            self._kept.add(_name(case), np.frombuffer(text, np.uint8))


def load_noise_floor(checkpoint: Checkpoint, kept: Kept | None) -> NoiseFloor | None:
    """Returns the reference in the checkpoint's own dtype; None if that is float32.

    Linears and embeddings stay mapped, as those of the reference do.
    """
    dtype = checkpoint.read(EMBEDDING).dtype
    if dtype == torch.float32:
        return None
    return NoiseFloor(lambda: TorchStages(load_reference(checkpoint, dtype=dtype, lazy=True)), kept)


def _name(case: Case) -> str:
    return f"noise.{case.digest[:32]}"
