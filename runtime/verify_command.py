"""`minicpmv verify`: does a bundle still say what the full-precision model says?"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantize.errors import BundleError, CheckpointError
from runtime.engine_options import (
    ADB,
    LOCAL,
    QEMU,
    EngineOptions,
    add_engine_arguments,
    engine_options,
)

if TYPE_CHECKING:
    from rich.console import Console

    from convert.bundle import Bundle
    from convert.checkpoint import Checkpoint
    from runtime.engine_session import EngineSession
    from runtime.prompt import Tokenizer
    from runtime.reference.model import MiniCPMV
    from runtime.verify.report import Report
    from runtime.verify.run import Models

NAME = "verify"
HELP = "compare a bundle with the full-precision model, stage by stage"
_SHOWN_FAILURES = 12
Progress = Callable[[str, int, int], None]  # stage, done, in all


@dataclass(frozen=True)
class VerifyConfig:
    """What the command line says."""

    bundle: Path
    reference: str | None
    window: int
    engine: EngineOptions
    as_json: bool


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("bundle", type=Path, metavar="DIR", help="a bundle, made by convert")
    parser.add_argument(
        "--reference",
        metavar="CHECKPOINT",
        help="the full-precision model; default: the checkpoint that the bundle was made from",
    )
    parser.add_argument(
        "--window", type=int, default=1024, metavar="N", help="context window in tokens"
    )
    add_engine_arguments(parser, (LOCAL, QEMU, ADB), default=LOCAL)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    """Verifies; returns 0 if all checks passed, 1 if one failed."""
    from convert.console import Bars, results

    config = VerifyConfig(args.bundle, args.reference, args.window, engine_options(args), args.json)
    with Bars() as bars:
        report = verify(config, bars)
    if config.as_json:
        print(json.dumps(report.to_json(), indent=1, ensure_ascii=False))
    else:
        _print(report, results())
    return 0 if report.passed else 1


def verify(config: VerifyConfig, progress: Progress) -> Report:
    """Runs all checks.

    Raises:
        BundleError: no bundle, or one whose program was altered.
        CheckpointError: the reference is missing, or not what the bundle was made from.
    """
    from convert.bundle import Bundle
    from runtime.engine_session import EngineSession
    from runtime.loader import open_source
    from runtime.places import open_place
    from runtime.prompt import Tokenizer
    from runtime.verify.cases import built_in_cases
    from runtime.verify.report import Report
    from runtime.verify.results import NothingKnown
    from runtime.verify.run import load_settings, run_cases
    from runtime.verify.weights import check_files, check_tensors

    started = time.monotonic()
    bundle = Bundle.open(config.bundle)
    settings = load_settings()
    place = open_place(bundle, config.engine)
    checks = check_files(bundle, place.target, progress)
    checkpoint = open_source(bundle, config.reference)
    if checkpoint.config != bundle.config:
        raise BundleError(f"{bundle.path}: its model configuration is not the checkpoint's")
    if checkpoint.tokenizer is None:
        raise CheckpointError(
            f"{checkpoint.path}: has no tokenizer.model; without one nothing can be asked"
        )
    checks += check_tensors(bundle, checkpoint, settings["thresholds"], progress)
    tokenizer = Tokenizer(checkpoint.tokenizer)
    place.prepare(progress)
    with closing(EngineSession(place, bundle.config, window=config.window)) as session:
        outcome = run_cases(
            _load_models(bundle, checkpoint, tokenizer, session, config.window),
            tokenizer,
            built_in_cases(settings["built_in"], with_pictures=bundle.config.vision is not None),
            settings,
            config.window,
            progress,
            NothingKnown(),
        )
    return Report(
        bundle=str(config.bundle),
        reference=str(checkpoint.path),
        quantization=bundle.plan.recipe.scheme.name,
        engine=place.engine,
        window=config.window,
        longest_prompt=outcome.longest_prompt,
        checks=checks + outcome.checks,
        answers=outcome.answers,
        positions=outcome.positions,
        seconds=time.monotonic() - started,
    )


def _load_models(
    bundle: Bundle,
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    session: EngineSession,
    window: int,
) -> Models:
    from quantize.methods import find_method
    from runtime.backend import ReferenceBackend
    from runtime.reference.kv_cache import KVCache
    from runtime.reference.load import load_reference
    from runtime.reference_session import ReferenceSession
    from runtime.verify.arithmetic import Float16KVCache, apply_arithmetic
    from runtime.verify.run import Model, Models, TorchModel
    from runtime.verify.stages import EngineStages, TorchStages
    from runtime.verify.stored import load_stored

    def model(torch_model: MiniCPMV, cache: type[KVCache]) -> TorchModel:
        backend = ReferenceBackend(torch_model, cache)
        return TorchModel(
            TorchStages(torch_model, cache), ReferenceSession(backend, tokenizer, window=window)
        )

    arithmetic = load_reference(checkpoint, held=True)
    stored = find_method(bundle.plan.recipe.method).search
    if stored:
        load_stored(arithmetic, bundle.plan, bundle.weights())
    rounded = apply_arithmetic(arithmetic, bundle.plan, stored=stored)
    return Models(
        reference=model(load_reference(checkpoint, held=True), KVCache),
        arithmetic=model(rounded, Float16KVCache),
        bundle=Model(EngineStages(session.client(), bundle.config), session),
    )


def _print(report: Report, console: Console) -> None:
    from convert.console import print_table

    def say(text: str, style: str | None = None) -> None:
        console.print(text, style=style, markup=False, soft_wrap=True)

    say(f"bundle     {report.bundle} ({report.quantization}, {report.engine})")
    say(f"reference  {report.reference} (float32)")
    overflow = "more than" if report.longest_prompt > report.window else "within"
    say(f"prompts    at most {report.longest_prompt} tokens, {overflow} the window\n")
    rows = []
    stage = ""
    for check, count in report.shown():
        rows.append(
            [
                check.stage if check.stage != stage else "",
                f"{check.metric}, {check.unit}" if check.unit else check.metric,
                f"{check.name} (worst of {count})" if count > 1 else check.name,
                *map(_figure, (check.value, check.expected, check.threshold)),
                "pass" if check.passed else "FAIL",
            ]
        )
        stage = check.stage
    header = ["stage", "figure", "of", "bundle", "expected", "limit", ""]
    print_table(console, header, rows)
    say("")
    for answer in report.answers:
        other = "" if answer.same else f", bundle {answer.bundle!r}"
        say(f"{answer.case}: {answer.question} {answer.reference!r}{other}")
    say("")
    for check in report.failures[:_SHOWN_FAILURES]:
        say(f"failed: {check.stage}: {check.name}, {check.metric}", "red")
    if len(report.failures) > _SHOWN_FAILURES:
        say(f"… and {len(report.failures) - _SHOWN_FAILURES} more; see --json")
    for cause in report.causes:
        say(f"cause: {cause.where}: {cause.why}", "red")
    if report.passed:
        say(f"passed in {report.seconds:.1f} s", "bold green")
    else:
        say(f"failed in: {', '.join(report.failed_stages)}", "bold red")


def _figure(value: float) -> str:
    if value in (float("inf"), float("-inf")):
        return "exact" if value > 0 else "none"
    return f"{value:.4g}"
