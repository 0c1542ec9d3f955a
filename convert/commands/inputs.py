"""What `minicpmv convert` works from: the recipe, the checkpoint's description, calibration."""

from __future__ import annotations

from convert.bundle.manifest import BundleSource
from convert.bundle.plan import Plan, Recipe
from convert.calibrate.calibration import calibrate
from convert.calibrate.samples import CalibrationSample, default_samples, read_samples
from convert.calibrate.store import CalibratedWeights
from convert.calibrate.target_size import choose_recipe, measure_losses, parse_size, smallest_size
from convert.checkpoint.hub import is_hub_id
from convert.checkpoint.reader import Checkpoint
from convert.commands.options import ConvertConfig
from convert.pipeline import Progress
from convert.support.cache import cache_folder
from quantize.methods import find_method


def load_recipe(name: str, config: ConvertConfig) -> Recipe:
    """Reads a recipe, with the method that was asked for."""
    recipe = Recipe.load(name)
    return recipe if config.method is None else recipe.with_method(config.method)


def sized_recipe(
    config: ConvertConfig, checkpoint: Checkpoint, base: Recipe, progress: Progress
) -> Recipe:
    """Chooses formats for `--target-size`."""
    assert config.target_size is not None
    size = parse_size(config.target_size)
    smallest_size(checkpoint, base, size)  # found out before the work
    losses = measure_losses(checkpoint, base, _samples(config, checkpoint), progress)
    return choose_recipe(checkpoint, base, size, losses).recipe


def calibrate_weights(
    config: ConvertConfig, checkpoint: Checkpoint, plan: Plan, progress: Progress
) -> CalibratedWeights | None:
    """Calibrates if the recipe's method asks for it."""
    if not find_method(plan.recipe.method).calibrated:
        return None
    samples = _samples(config, checkpoint)
    return calibrate(checkpoint, plan, samples, cache_folder() / "calibration", progress)


def _samples(config: ConvertConfig, checkpoint: Checkpoint) -> list[CalibrationSample]:
    """Returns what calibration and measurements show the model."""
    pictures = checkpoint.config.vision is not None
    if config.samples is not None:
        return read_samples(config.samples, pictures=pictures, skip_bad=config.skip_bad)
    return default_samples(demo=config.checkpoint is None, pictures=pictures)


def describe_source(
    checkpoint: Checkpoint, config: ConvertConfig, progress: Progress
) -> BundleSource:
    """Says where the weights come from, in a way that `verify` can find them again."""
    if config.checkpoint is None:
        path = "demo"
    elif is_hub_id(config.checkpoint):
        path = config.checkpoint
    else:
        path = str(checkpoint.path.resolve())
    digest = checkpoint.source_hash(lambda done, total: progress("hash checkpoint", done, total))
    return BundleSource(path=path, sha256=digest, demo=config.checkpoint is None)
