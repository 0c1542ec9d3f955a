"""`minicpmv verify`: does a bundle still say what the full-precision model says?"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize.errors import BundleError, CheckpointError, ConfigError
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
    from runtime.places import Place
    from runtime.prompt import Tokenizer
    from runtime.reference.model import MiniCPMV
    from runtime.verify.cases import Case
    from runtime.verify.report import Report
    from runtime.verify.report_folder import ReportFolder
    from runtime.verify.results import Known
    from runtime.verify.run import Models

NAME = "verify"
HELP = "compare a bundle with the full-precision model, stage by stage"
_SHOWN_FAILURES, _SHOWN_ANSWERS = 12, 24
Progress = Callable[[str, int, int], None]  # stage, done, in all


@dataclass(frozen=True)
class VerifyConfig:
    """What the command line says."""

    bundle: Path
    reference: str | None
    window: int
    engine: EngineOptions
    as_json: bool
    data: Path | None = None  # None: the built-in cases
    skip_bad: bool = False
    report: Path | None = None
    force: bool = False

    def __post_init__(self) -> None:
        """Checks combinations."""
        if self.skip_bad and self.data is None:
            raise ConfigError("--skip-bad is for --data")


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
    parser.add_argument(
        "--data",
        metavar="FILE",
        type=Path,
        help='JSON lines with "question", "image" and "answer", instead of the built-in set',
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out lines of --data that cannot be used"
    )
    parser.add_argument(
        "--report",
        metavar="FOLDER",
        type=Path,
        help="write a page and its data; a run that ended early goes on from there",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="compare with a checkpoint that the bundle was not made from, too",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    """Verifies; returns 0 if all checks passed, 1 if one failed."""
    from convert.console import Bars, results
    from runtime.verify.report_folder import PAGE

    names = VerifyConfig.__dataclass_fields__.keys() - {"engine", "as_json"}
    config = VerifyConfig(
        engine=engine_options(args),
        as_json=args.json,
        **{name: getattr(args, name) for name in names},
    )
    with Bars() as bars:
        report = verify(config, bars)
    if config.as_json:
        print(json.dumps(report.to_json(), indent=1, ensure_ascii=False))
    else:
        _print(report, results())
        if config.report is not None:
            results().print(f"report     {config.report / PAGE}", markup=False, soft_wrap=True)
    return 0 if report.passed else 1


def verify(config: VerifyConfig, progress: Progress) -> Report:
    """Runs all checks, and writes the report if one is asked for.

    Raises:
        BundleError: no bundle, or one whose program was altered.
        CheckpointError: the reference is missing, or not what the bundle was made from.
        ToolkitError: a line of the data that cannot be used, or no place for the report.
    """
    from convert.bundle import Bundle
    from runtime.engine_session import EngineSession
    from runtime.places import open_place
    from runtime.prompt import Tokenizer
    from runtime.verify.isolate import find_causes
    from runtime.verify.page.render import render
    from runtime.verify.ran import what_ran
    from runtime.verify.report import Report, stored_tensors
    from runtime.verify.report_folder import ReportFolder
    from runtime.verify.run import load_settings, run_cases
    from runtime.verify.weights import check_files, check_tensors

    started = time.monotonic()
    bundle = Bundle.open(config.bundle)
    settings = load_settings()
    folder = None if config.report is None else ReportFolder(config.report)
    cases = _cases(config, settings, with_pictures=bundle.config.vision is not None)
    place = open_place(bundle, config.engine)
    checks = check_files(bundle, place.target, progress)
    checkpoint, warnings = _open_reference(bundle, config)
    assert checkpoint.tokenizer is not None
    tokenizer = Tokenizer(checkpoint.tokenizer)
    altered = not all(check.passed for check in checks)
    kept = None if altered else folder  # what is known holds for the bundle as it was made
    with _known(kept, bundle, checkpoint, place, config, settings) as known:
        checks += check_tensors(bundle, checkpoint, settings["thresholds"], progress)
        place.prepare(progress)
        with closing(EngineSession(place, bundle.config, window=config.window)) as session:
            hello = session.client().hello
            models = _load_models(bundle, checkpoint, tokenizer, session, config.window, progress)
            outcome = run_cases(
                models,
                tokenizer,
                cases,
                settings,
                config.window,
                progress,
                known,
                skip_bad=config.skip_bad,
            )
            checks += outcome.checks
            asked = {answer.case for answer in outcome.answers}
            causes = find_causes(
                checks,
                bundle,
                checkpoint,
                models,
                tokenizer,
                [case for case in cases if case.name in asked],
                settings["thresholds"],
                progress,
            )
    report = Report(
        bundle=str(config.bundle),
        reference=str(checkpoint.path),
        quantization=bundle.plan.recipe.scheme.name,
        engine=place.engine,
        window=config.window,
        longest_prompt=outcome.longest_prompt,
        checks=checks,
        causes=causes,
        answers=outcome.answers,
        warnings=warnings,
        tensors=stored_tensors(bundle.plan),
        positions=outcome.positions,
        ran=what_ran(bundle, checkpoint, place, hello, config.window),
        earlier_cases=known.reused,
        seconds=time.monotonic() - started,
    )
    if folder is not None:
        folder.write(render(report, cases), report.to_json())
    return report


def _cases(config: VerifyConfig, settings: Mapping[str, Any], *, with_pictures: bool) -> list[Case]:
    from runtime.verify.cases import built_in_cases, read_cases

    if config.data is None:
        return built_in_cases(settings["built_in"], with_pictures=with_pictures)
    return read_cases(config.data, with_pictures=with_pictures, skip_bad=config.skip_bad)


def _open_reference(bundle: Bundle, config: VerifyConfig) -> tuple[Checkpoint, list[str]]:
    """Returns the checkpoint, and what to be warned of."""
    from runtime.loader import find_source, source_problem

    checkpoint, warnings = find_source(bundle, config.reference), []
    problem = source_problem(bundle, checkpoint)
    if problem is not None:
        if not config.force:
            raise CheckpointError(f"{problem}; convert again, or compare all the same with --force")
        warnings.append(f"{problem}: what differs may be the reference, not the bundle")
    head = any(tensor.name == "llm.head" for tensor in bundle.plan.tensors)
    if checkpoint.config != bundle.config or checkpoint.untied_head != head:
        raise BundleError(
            f"{bundle.path}: its model configuration is not that of {checkpoint.path}; nothing "
            "can be compared"
        )
    if checkpoint.tokenizer is None:
        raise CheckpointError(
            f"{checkpoint.path}: has no tokenizer.model; without one nothing can be asked"
        )
    return checkpoint, warnings


@contextmanager
def _known(
    folder: ReportFolder | None,
    bundle: Bundle,
    checkpoint: Checkpoint,
    place: Place,
    config: VerifyConfig,
    settings: Mapping[str, Any],
) -> Iterator[Known]:
    """Opens what an earlier run measured; nothing without a folder."""
    from runtime.verify.ran import identity, package_version
    from runtime.verify.results import Known, KnownInFile

    if folder is None:
        yield Known()
        return
    about = {
        "bundle": identity(bundle),
        "reference": checkpoint.source_hash(),
        "engine": place.description,
        "target": place.target,
        "toolkit": package_version("minicpmv"),
        "window": config.window,
        "settings": settings,
    }
    with folder.cases(about) as file:
        yield KnownInFile(file)


def _load_models(
    bundle: Bundle,
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    session: EngineSession,
    window: int,
    progress: Progress,
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

    def loaded(done: int, layers: int) -> None:
        progress("load the models", done, layers)

    loaded(0, bundle.config.decoder.num_hidden_layers)
    arithmetic = load_reference(checkpoint, held=True)
    stored = find_method(bundle.plan.recipe.method).search
    if stored:
        load_stored(arithmetic, bundle.plan, bundle.weights(), loaded)
    rounded = apply_arithmetic(arithmetic, bundle.plan, stored=stored, progress=loaded)
    reference = load_reference(checkpoint, held=True)
    loaded(bundle.config.decoder.num_hidden_layers, bundle.config.decoder.num_hidden_layers)
    return Models(
        reference=model(reference, KVCache),
        arithmetic=model(rounded, Float16KVCache),
        bundle=Model(EngineStages(session.client(), bundle.config), session),
    )


def _print(report: Report, console: Console) -> None:
    from convert.console import print_table
    from runtime.verify.report import figure

    def say(text: str, style: str | None = None) -> None:
        console.print(text, style=style, markup=False, soft_wrap=True)

    say(f"bundle     {report.bundle} ({report.quantization}, {report.engine})")
    say(f"reference  {report.reference} (float32)")
    for warning in report.warnings:
        say(f"warning    {warning}", "yellow")
    if report.earlier_cases:
        say(f"cases      {report.earlier_cases} of {len(report.answers)} from an earlier run")
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
                *map(figure, (check.value, check.expected, check.threshold)),
                "pass" if check.passed else "FAIL",
            ]
        )
        stage = check.stage
    header = ["stage", "figure", "of", "bundle", "expected", "limit", ""]
    print_table(console, header, rows)
    say("")
    few = len(report.answers) <= _SHOWN_ANSWERS
    shown = [answer for answer in report.answers if few or not answer.same]
    for answer in shown[:_SHOWN_ANSWERS]:
        other = "" if answer.same else f", bundle {answer.bundle!r}"
        say(f"{answer.case}: {answer.question} {answer.reference!r}{other}")
    if not few:
        different = sum(not answer.same for answer in report.answers)
        say(f"{different} of {len(report.answers)} answers differ; see --report or --json")
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
