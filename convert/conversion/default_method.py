"""Whether a bundle is calibrated if the user leaves that open, and what the plan says about it."""

from __future__ import annotations

from convert.bundle.plan import Plan, Recipe, make_plan
from convert.calibrate.estimate import estimate_seconds
from convert.calibrate.samples import tokenize
from convert.conversion.conversion import Conversion
from quantize.methods import find_method

UNCALIBRATED = "rtn"
MOST_SECONDS = 3600.0  # of a calibration that nobody asked for
# The whole set takes longer than that on many machines, this part of it rarely. There is no third
# choice: a run that chooses otherwise cannot resume an earlier one.
_FEWER = 4


def settle_method(conversion: Conversion, recipe: Recipe) -> Plan:
    """Returns a bundle's plan, and adds a note about calibration for the user.

    The default recipe is calibrated if the checkpoint has a tokenizer and it takes at most an hour,
    with all built-in samples or a quarter of them.

    Raises:
        ToolkitError: the recipe does not suit the model, or a sample cannot be used.
    """
    config, checkpoint = conversion.config, conversion.checkpoint

    def plan_of(recipe: Recipe) -> Plan:
        return make_plan(checkpoint.config, checkpoint.untied_head, recipe, config.kv)

    def plain(why: str) -> Plan:
        conversion.notes.append(("calibration", f"none: {why}"))
        return plan_of(recipe.with_method(UNCALIBRATED))

    plan = plan_of(recipe)
    if not find_method(recipe.method).calibrated:
        return plan
    chosen = (config.quant, config.method, config.target_size, config.samples)
    is_open = all(choice is None for choice in chosen)
    if is_open and checkpoint.tokenizer is None:
        return plain("the checkpoint has no tokenizer; --calibration takes samples as token ids")
    everything, asked = conversion.samples(), f"--method {recipe.method}"

    def seconds_with(count: int) -> float:
        samples = tokenize(everything[:count], checkpoint)
        return estimate_seconds(checkpoint.config, plan, samples)

    count = len(everything)
    seconds = seconds_with(count)
    if is_open and seconds > MOST_SECONDS:
        count = -(-count // _FEWER)
        seconds = seconds_with(count)
        if seconds > MOST_SECONDS:
            return plain(f"it would take {_time(seconds)} here; {asked} calibrates all the same")
        conversion.most_samples = count
    some = "" if count == len(everything) else f" with {count} of {len(everything)} samples"
    every = f" ({asked}: all)" if some else ""
    note = f"{_time(seconds)}{some}{every}; --method {UNCALIBRATED} skips it"
    conversion.notes.append(("calibration", note))
    return plan


def _time(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute"
    return f"about {minutes} min" if minutes < 100 else f"about {round(minutes / 60)} hours"
