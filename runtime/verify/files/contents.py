"""The files of a bundle that hold no weights: do they say what a conversion writes there?

Every hash may be right and a file still be another than it should: what is compared here is what
the tokenizer, the settings and the golden answers say, and what the engine makes of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from convert.bundle.errors import BundleError
from convert.bundle.manifest import GENERATION, GOLDEN, GOLDEN_PICTURE, MANIFEST, TOKENIZER, Bundle
from convert.bundle.plan import Recipe
from convert.checkpoint.config import CONFIGS
from convert.checkpoint.reader import Checkpoint
from convert.support.progress import Progress
from convert.support.strict_json import load_json
from quantize.errors import ConfigError
from runtime.engine_client.client import EngineError
from runtime.engine_client.protocol import ErrorCode
from runtime.inputs.prompt import Tokenizer
from runtime.reference.kv_cache import ATTENTION_SINKS
from runtime.verify.check import Cause, Check
from runtime.verify.files.differences import differences, listed
from runtime.verify.files.golden import (
    STAGE,
    answer_checks,
    file_problems,
    picture_problems,
    text_checks,
)
from runtime.verify.files.tokenizer import STAGE as TOKENIZER_STAGE
from runtime.verify.files.tokenizer import file_check, vocabulary_check
from runtime.verify.stages import EngineStages

SETTINGS = "settings"  # a stage
_ORDER = (TOKENIZER_STAGE, SETTINGS, STAGE)  # in which the stages are told


@dataclass
class Contents:
    """What was found."""

    checks: list[Check] = field(default_factory=list)
    causes: list[Cause] = field(default_factory=list)  # files that say something else
    # Golden answers that the engine does not give: a cause only where nothing else is wrong.
    answers: list[Cause] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, stage: str, name: str, problems: Sequence[str]) -> None:
        """Adds a file's check, and what is wrong with it."""
        metric = "as convert writes it"
        self.checks.append(Check(stage, name, metric, "", float(not problems), 1, 1, True))
        if problems:
            self.causes.append(Cause(name, listed(list(problems))))


def check_contents(
    bundle: Bundle, checkpoint: Checkpoint, engine: EngineStages, progress: Progress
) -> Contents:
    """Compares tokenizer, settings and golden answers.

    Args:
        bundle: as it is stored.
        checkpoint: what it was made from.
        engine: with the bundle loaded.
        progress: counts golden prompts.

    Raises:
        BundleError: there is no tokenizer, though the checkpoint has one, or the engine's blocks
            were compiled for something else than the manifest says.
    """
    assert checkpoint.tokenizer is not None
    if bundle.tokenizer is None:
        raise BundleError(
            f"{bundle.path}: has no {TOKENIZER}, but its checkpoint has one; convert again"
        )
    _require_work(bundle, engine)
    tokenizer, found = Tokenizer(checkpoint.tokenizer, checkpoint.config), Contents()
    found.checks.append(file_check(bundle.tokenizer, checkpoint.tokenizer))
    found.checks.append(vocabulary_check(engine.text(range(tokenizer.vocab_size)), tokenizer))
    _check_recipe(bundle, found)
    expected = load_json(CONFIGS / GENERATION)
    settings, problems = _read(bundle, GENERATION)
    found.add(SETTINGS, GENERATION, problems or list(differences(settings, expected, "")))
    if GOLDEN in bundle.manifest.files:
        _check_golden(bundle, tokenizer, engine, found, progress)
    else:
        found.warnings.append(
            f"{bundle.path} has no {GOLDEN}, with which a phone checks itself; convert on Linux "
            "with the target host to get one"
        )
    found.checks.sort(key=lambda check: _ORDER.index(check.stage))
    return found


def _require_work(bundle: Bundle, engine: EngineStages) -> None:
    """Runs a token through the decoder: blocks that were compiled for something else fail."""
    embeds = engine.embed([bundle.config.decoder.bos_token_id])
    try:
        engine.layers([embeds], 2 * ATTENTION_SINKS, ATTENTION_SINKS)
    except EngineError as error:
        if error.code != ErrorCode.INTERNAL:
            raise
        raise BundleError(
            f"{bundle.path / MANIFEST}: says that the KV cache is {bundle.plan.kv}, but the "
            f"engine's blocks were compiled for something else; convert again ({error})"
        ) from error


def _check_recipe(bundle: Bundle, found: Contents) -> None:
    """Compares what the manifest says of the recipe with the recipe of that name.

    The method is taken on trust: how scales were found does not show in them.
    """
    own, name = bundle.plan.recipe, bundle.plan.recipe.scheme.name
    try:
        recipe = Recipe.load(name)
    except ConfigError:
        found.warnings.append(f"there is no recipe {name!r:.40} here to compare the bundle's with")
        return
    if own.method != recipe.method:
        recipe = recipe.with_method(own.method)
    rows, base = own.source["tensors"], recipe.source["tensors"]
    wanted = {**recipe.source, "tensors": [*rows[: len(rows) - len(base)], *base]}  # --target-size
    problems = list(differences(own.source, wanted, "quantization"))
    found.add(SETTINGS, f"{MANIFEST}: quantization", problems)


def _check_golden(
    bundle: Bundle,
    tokenizer: Tokenizer,
    engine: EngineStages,
    found: Contents,
    progress: Progress,
) -> None:
    golden, problems = _read(bundle, GOLDEN)
    problems = problems or file_problems(golden, bundle.config)
    found.add(STAGE, GOLDEN, problems)
    if bundle.config.vision is not None:
        found.add(STAGE, GOLDEN_PICTURE, picture_problems(bundle))
    if problems:
        return  # what such a file expects of an engine says nothing
    found.checks += text_checks(golden, bundle.config, tokenizer, engine)
    checks, found.answers = answer_checks(engine, len(golden["prompts"]), progress)
    found.checks += checks


def _read(bundle: Bundle, name: str) -> tuple[Any, list[str]]:
    """Reads a file of JSON; returns it, and what is wrong if that fails."""
    try:
        return load_json(bundle.path / name), []
    except (OSError, ValueError) as error:
        return None, [f"cannot be read as JSON: {error}"]
