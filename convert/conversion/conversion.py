"""The state of one conversion, which its products share."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cached_property

from convert.bundle.manifest import BundleSource
from convert.bundle.plan import Plan, Recipe
from convert.calibrate.built_in import default_samples
from convert.calibrate.calibration import calibrate
from convert.calibrate.enlarged import with_slices
from convert.calibrate.samples import CalibrationSample, read_samples
from convert.calibrate.store import CalibratedWeights
from convert.checkpoint.hub import is_hub_id
from convert.checkpoint.reader import Checkpoint, demo_name
from convert.conversion.config import ConvertConfig
from convert.support.cache import cache_folder
from convert.support.phases import Phases
from convert.support.progress import Progress, silent
from quantize.methods import find_method


@dataclass
class Conversion:
    """A checkpoint on its way to one or more products."""

    config: ConvertConfig
    checkpoint: Checkpoint
    progress: Progress = silent
    phases: Phases = field(default_factory=Phases)
    started: float = field(default_factory=time.monotonic)
    notes: list[tuple[str, str]] = field(default_factory=list)  # on the plan, for the user
    most_samples: int | None = None  # of the built-in ones; None: all

    @cached_property
    def source(self) -> BundleSource:
        """The source of the weights, by which `verify` finds the checkpoint again.

        The checkpoint is hashed on first use.
        """
        name, demo = self.config.checkpoint, demo_name(self.config.checkpoint)
        if demo is not None:
            path = demo
        elif name is not None and is_hub_id(name):
            path = name
        else:
            path = str(self.checkpoint.path.resolve())
        with self.phases.measure("hash checkpoint"):
            digest = self.checkpoint.source_hash(self.progress)
        return BundleSource(path=path, sha256=digest, demo=demo is not None)

    def load_recipe(self, name: str) -> Recipe:
        """Reads a recipe, and applies the requested method.

        Raises:
            ConfigError: no such recipe or method.
        """
        recipe, method = Recipe.load(name), self.config.method
        return recipe if method is None else recipe.with_method(method)

    def samples(self) -> list[CalibrationSample]:
        """Returns the conversations that calibration and measurements run through the model.

        Raises:
            CalibrationError: the user's file has a line that cannot be used.
        """
        pictures = self.checkpoint.config.vision is not None
        path = self.config.samples
        if path is not None:
            skip_bad = self.config.skip_bad
            return read_samples(path, pictures=pictures, skip_bad=skip_bad, token_ids=True)
        demo = demo_name(self.config.checkpoint)
        samples = default_samples(demo=demo, pictures=pictures)
        if demo is None:  # a demo's own pictures have the size that it knows
            samples = with_slices(samples, self.checkpoint.config.vision)
        return samples[: self.most_samples]

    def calibrate(self, plan: Plan) -> CalibratedWeights | None:
        """Calibrates a plan's weights; None where the recipe's method needs no calibration.

        Raises:
            CalibrationError: a sample does not suit the model.
            CheckpointError: a tensor holds NaN or infinity.
        """
        if not find_method(plan.recipe.method).calibrated:
            return None
        home = cache_folder() / "calibration"
        return calibrate(self.checkpoint, plan, self.samples(), home, self.progress)
