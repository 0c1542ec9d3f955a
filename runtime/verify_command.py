"""`minicpmv verify`: does a bundle still say what the full-precision model says?"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantize.errors import BundleError, CheckpointError

if TYPE_CHECKING:
    from rich.console import Console

    from convert.bundle import Bundle
    from convert.checkpoint import Checkpoint
    from runtime.verify.report import Check, Report
    from runtime.verify.run import Models

NAME = "verify"
HELP = "compare a bundle with the full-precision model, stage by stage"
_SHOWN_FAILURES = 12
Progress = Callable[[str], None]


@dataclass(frozen=True)
class VerifyConfig:
    """What the command line says."""

    bundle: Path
    reference: str | None
    window: int
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
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    """Verifies; returns 0 if all checks passed, 1 if one failed."""
    from rich.console import Console

    config = VerifyConfig(args.bundle, args.reference, args.window, args.json)
    progress = Console(stderr=True)
    with progress.status("opening") as status:
        report = verify(config, status.update)
    if config.as_json:
        json.dump(report.to_json(), sys.stdout, indent=1, ensure_ascii=False)
        print()
    else:
        _print(report, Console())
    return 0 if report.passed else 1


def verify(config: VerifyConfig, progress: Progress) -> Report:
    """Runs all checks.

    Raises:
        BundleError: no bundle, or one whose program was altered.
        CheckpointError: the reference is missing, or not what the bundle was made from.
    """
    from convert.bundle import Bundle
    from runtime.loader import open_source
    from runtime.prompt import Tokenizer
    from runtime.verify.cases import built_in_cases
    from runtime.verify.report import Report
    from runtime.verify.run import load_settings, run_cases
    from runtime.verify.weights import check_files, check_tensors

    started = time.monotonic()
    bundle = Bundle.open(config.bundle)
    settings = load_settings()
    progress("hashing the bundle")
    checks = check_files(bundle, "host")
    progress("hashing the reference")
    checkpoint = open_source(bundle, config.reference)
    if checkpoint.config != bundle.config:
        raise BundleError(f"{bundle.path}: its model configuration is not the checkpoint's")
    if checkpoint.tokenizer is None:
        raise CheckpointError(
            f"{checkpoint.path}: has no tokenizer.model; without one nothing can be asked"
        )
    checks += check_tensors(
        bundle, checkpoint, settings["thresholds"], lambda name: progress(f"weights: {name}")
    )
    progress("loading the models")
    outcome = run_cases(
        _load_models(bundle, checkpoint),
        Tokenizer(checkpoint.tokenizer),
        built_in_cases(settings["built_in"], with_pictures=bundle.config.vision is not None),
        settings,
        config.window,
        progress,
    )
    return Report(
        bundle=str(config.bundle),
        reference=str(checkpoint.path),
        quantization=bundle.plan.recipe.scheme.name,
        engine="local",
        window=config.window,
        longest_prompt=outcome.longest_prompt,
        checks=checks + outcome.checks,
        answers=outcome.answers,
        seconds=time.monotonic() - started,
    )


def _load_models(bundle: Bundle, checkpoint: Checkpoint) -> Models:
    from runtime.backend import CompiledBackend, ReferenceBackend
    from runtime.compiled import CompiledModel
    from runtime.reference.load import load_reference
    from runtime.verify.arithmetic import Float16KVCache, apply_arithmetic
    from runtime.verify.run import Model, Models
    from runtime.verify.stages import CompiledStages, TorchStages

    reference = load_reference(checkpoint)
    arithmetic = apply_arithmetic(load_reference(checkpoint), bundle.plan.recipe.scheme)
    compiled = CompiledModel(bundle.config, bundle.library("host"), bundle.weights())
    return Models(
        reference=Model(TorchStages(reference), ReferenceBackend(reference)),
        arithmetic=Model(
            TorchStages(arithmetic, Float16KVCache), ReferenceBackend(arithmetic, Float16KVCache)
        ),
        bundle=Model(CompiledStages(compiled), CompiledBackend(compiled)),
    )


def _print(report: Report, console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    console.print(f"bundle     {escape(report.bundle)}  ({report.quantization}, {report.engine})")
    console.print(f"reference  {escape(report.reference)}  (float32)")
    overflow = "more than" if report.longest_prompt > report.window else "within"
    console.print(f"prompts    at most {report.longest_prompt} tokens, {overflow} the window")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("stage", "worst of", "figure"):
        table.add_column(title, overflow="fold")
    for title in ("bundle", "expected", "limit", ""):
        table.add_column(title, justify="right", no_wrap=True)
    stage = ""
    for check, count in _shown(report):
        name = f"{count}: {check.name}" if count > 1 else check.name
        unit = f", {check.unit}" if check.unit else ""
        verdict = "[green]pass[/]" if check.passed else "[bold red]FAIL[/]"
        figures = (_figure(x) for x in (check.value, check.expected, check.threshold))
        shown_stage = check.stage if check.stage != stage else ""
        stage = check.stage
        table.add_row(shown_stage, escape(name), f"{check.metric}{unit}", *figures, verdict)
    console.print(table)
    for answer in report.answers:
        mark = "[green]=[/]" if answer.same else "[yellow]≠[/]"
        text = f"{answer.case}: {answer.question} → {answer.reference!r}"
        other = "" if answer.same else f", bundle: {answer.bundle!r}"
        console.print(f"{mark} {escape(text + other)}", highlight=False)
    for check in report.failures[:_SHOWN_FAILURES]:
        console.print(f"[red]failed[/] {escape(f'{check.stage}: {check.name}, {check.metric}')}")
    if len(report.failures) > _SHOWN_FAILURES:
        console.print(f"… and {len(report.failures) - _SHOWN_FAILURES} more; see --json")
    if report.passed:
        console.print(f"[bold green]passed[/] in {report.seconds:.1f} s")
    else:
        console.print(f"[bold red]failed[/] in: {', '.join(report.failed_stages)}")


def _shown(report: Report) -> list[tuple[Check, int]]:
    """Returns one row per stage and figure: the check nearest to failing, and of how many."""
    from runtime.verify.run import slack

    rows: dict[tuple[str, str], list[Check]] = {}
    for check in report.checks:
        rows.setdefault((check.stage, check.metric), []).append(check)
        if check.stage == "logits":  # image, text and answer positions are told apart
            rows[check.stage, f"{check.metric}{check.name}"] = [check]
            rows.pop((check.stage, check.metric))
    return [(min(checks, key=slack), len(checks)) for checks in rows.values()]


def _figure(value: float) -> str:
    if value in (float("inf"), float("-inf")):
        return "exact" if value > 0 else "none"
    return f"{value:.4g}"
