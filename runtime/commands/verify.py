"""`minicpmv verify`: compares a bundle with the full-precision model, stage by stage."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.bundle.errors import BundleError
from convert.support.progress import Progress
from convert.support.streams import print_json
from quantize.errors import CheckpointError, ConfigError
from runtime.engine_client.options import (
    ADB,
    LOCAL,
    QEMU,
    EngineOptions,
    add_engine_arguments,
    engine_options,
)

if TYPE_CHECKING:
    from convert.bundle.manifest import Bundle
    from convert.checkpoint.reader import Checkpoint
    from runtime.engine_client.place import Device
    from runtime.sessions.engine_session import EngineSession
    from runtime.verify.cases import Case
    from runtime.verify.check import Cause, Check
    from runtime.verify.measure.results import Outcome, ResultCache
    from runtime.verify.measure.run import Models
    from runtime.verify.report.folder import ReportFolder
    from runtime.verify.report.report import Report
    from runtime.verify.stages import EngineStages

NAME = "verify"
HELP = "compare a bundle with the full-precision model, stage by stage"
EXAMPLES = (
    ("verify the demo's bundle on this PC", "minicpmv verify build/demo"),
    (
        "verify a phone's engine, and write a report",
        "minicpmv verify phone --engine qemu --report report",
    ),
)


@dataclass(frozen=True)
class VerifyConfig:
    """What the user asked for."""

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
            raise ConfigError("--skip-bad needs --data")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("bundle", type=Path, metavar="DIR", help="a bundle, made by convert")
    add_engine_arguments(parser, (LOCAL, QEMU, ADB), default=LOCAL)
    add = parser.add_argument_group("comparison").add_argument
    add(
        "--reference",
        metavar="CHECKPOINT",
        help="the full-precision model (default: the checkpoint that the bundle was made from)",
    )
    add(
        "--force",
        action="store_true",
        help="accept a --reference that the bundle was not made from",
    )
    add(
        "--window",
        type=int,
        default=1024,
        metavar="N",
        help="context window in tokens (default: %(default)s)",
    )
    add(
        "--data",
        metavar="FILE.jsonl",
        type=Path,
        help="questions, one JSON object per line: question, and optionally image (a path relative "
        "to the file) and answer (default: built-in questions)",
    )
    add("--skip-bad", action="store_true", help="skip invalid lines of --data")
    add = parser.add_argument_group("output").add_argument
    add(
        "--report",
        metavar="FOLDER",
        type=Path,
        help="write a report as a web page, with its data; a later run of the same command "
        "continues an interrupted one",
    )
    add("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    """Verifies; returns 0 if all checks passed, 1 if one failed."""
    # Read when PyTorch is loaded. Its idle threads would otherwise spin and slow the engine down.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from convert.support.console import Bars, results
    from runtime.verify.report.folder import PAGE
    from runtime.verify.report.table import print_report

    names = VerifyConfig.__dataclass_fields__.keys() - {"engine", "as_json"}
    config = VerifyConfig(
        engine=engine_options(args),
        as_json=args.json,
        **{name: getattr(args, name) for name in names},
    )
    with Bars() as bars:
        report = verify(config, bars)
    if config.as_json:
        print_json(report.to_json(), indent=1)
    else:
        print_report(report, results())
        if config.report is not None:
            results().print(f"report     {config.report / PAGE}", markup=False, soft_wrap=True)
    return 0 if report.passed else 1


def verify(config: VerifyConfig, progress: Progress) -> Report:
    """Runs all checks, and writes the report if one was asked for.

    Raises:
        BundleError: no bundle, or one whose program was altered.
        CheckpointError: the reference is missing, or not what the bundle was made from.
        ToolkitError: a line of the data that cannot be used, or no place for the report.
    """
    from convert.bundle.manifest import Bundle
    from runtime.engine_client.places import open_place
    from runtime.verify.files.weights import check_files
    from runtime.verify.measure.run import load_settings
    from runtime.verify.report.folder import ReportFolder
    from runtime.verify.report.page.render import render
    from runtime.verify.report.provenance import what_ran
    from runtime.verify.report.report import Report, stored_tensors

    started = time.monotonic()
    bundle = Bundle.open(config.bundle)
    settings = load_settings()
    folder = None if config.report is None else ReportFolder(config.report)
    cases = _cases(config, settings, with_pictures=bundle.config.vision is not None)
    place = open_place(bundle, config.engine)
    files = check_files(bundle, place.target, progress)
    checkpoint, warnings = _open_reference(bundle, config)
    # Stored results hold for the bundle as it was made.
    kept = folder if all(check.passed for check in files) else None
    with _known(kept, bundle, checkpoint, place, config, settings) as known:
        found = _measure(config, bundle, checkpoint, place, files, cases, known, settings, progress)
    report = Report(
        bundle=str(config.bundle),
        reference=str(checkpoint.path),
        quantization=bundle.plan.recipe.scheme.name,
        kv_cache=bundle.plan.kv,
        engine=place.engine,
        window=config.window,
        longest_prompt=found.outcome.longest_prompt,
        checks=found.checks,
        answers=found.outcome.answers,
        causes=found.causes,
        warnings=[*warnings, *found.warnings],
        tensors=stored_tensors(bundle.plan),
        positions=found.outcome.positions,
        ran=what_ran(bundle, checkpoint, place, found.hello, config.window),
        earlier_cases=known.reused,
        seconds=time.monotonic() - started,
    )
    if folder is not None:
        folder.write(render(report, cases), report.to_json())
    return report


@dataclass(frozen=True)
class _Measured:
    """The results for files, tensors and cases."""

    checks: list[Check]
    outcome: Outcome
    causes: list[Cause]
    warnings: list[str]
    hello: Mapping[str, Any]  # the engine's first line


def _measure(
    config: VerifyConfig,
    bundle: Bundle,
    checkpoint: Checkpoint,
    place: Device,
    files: Sequence[Check],
    cases: Sequence[Case],
    known: ResultCache,
    settings: Mapping[str, Any],
    progress: Progress,
) -> _Measured:
    from runtime.inputs.prompt import Tokenizer
    from runtime.verify.diagnose.isolate import find_causes
    from runtime.verify.files.contents import check_contents
    from runtime.verify.files.weights import check_brought, check_tensors
    from runtime.verify.measure.run import run_cases
    from runtime.verify.stages import EngineStages

    assert checkpoint.tokenizer is not None
    tokenizer, limits, window = (
        Tokenizer(checkpoint.tokenizer),
        settings["thresholds"],
        config.window,
    )
    checks = [*files, *check_tensors(bundle, checkpoint, limits, progress)]
    place.prepare(progress)
    checks += check_brought(place, progress)
    with closing(_start(place, bundle, window, checks)) as session:
        hello = session.client().hello
        engine = EngineStages(session.client(), bundle.config)
        contents = check_contents(bundle, checkpoint, engine, progress)
        checks += contents.checks
        models = _load_models(bundle, checkpoint, engine, session, progress)
        outcome = run_cases(
            models, tokenizer, cases, settings, window, progress, known, skip_bad=config.skip_bad
        )
        checks += outcome.checks
        names = {answer.case for answer in outcome.answers}
        asked = [case for case in cases if case.name in names]
        causes = find_causes(
            checks, bundle, checkpoint, models, tokenizer, asked, contents, limits, progress
        )
    return _Measured(checks, outcome, causes, contents.warnings, hello)


def _start(place: Device, bundle: Bundle, window: int, checks: Sequence[Check]) -> EngineSession:
    """Starts the engine; if it refuses the bundle, reports which file was altered."""
    from runtime.sessions.engine_session import EngineSession

    try:
        return EngineSession(place, bundle.config, window=window)
    except BundleError as error:
        altered = [check.name for check in checks if check.stage == "files" and not check.passed]
        if not altered:
            raise
        raise BundleError(
            f"{', '.join(altered)}: altered: the SHA-256 is not the manifest's; {error}"
        ) from error


def _cases(config: VerifyConfig, settings: Mapping[str, Any], *, with_pictures: bool) -> list[Case]:
    from runtime.verify.cases import built_in_cases, read_cases

    if config.data is None:
        return built_in_cases(settings["built_in"], with_pictures=with_pictures)
    return read_cases(config.data, with_pictures=with_pictures, skip_bad=config.skip_bad)


def _open_reference(bundle: Bundle, config: VerifyConfig) -> tuple[Checkpoint, list[str]]:
    """Returns the checkpoint, and warnings about it."""
    from convert.bundle.manifest import MANIFEST
    from runtime.sessions.loader import find_source, source_problem
    from runtime.verify.files.differences import differences, listed

    checkpoint, warnings = find_source(bundle, config.reference), []
    problem = source_problem(bundle, checkpoint)
    if problem is not None:
        if not config.force:
            raise CheckpointError(f"{problem}; convert again, or compare anyway with --force")
        warnings.append(
            f"{problem}: differences may come from the reference and not from the bundle"
        )
    head = any(tensor.name == "llm.head" for tensor in bundle.plan.tensors)
    if checkpoint.config != bundle.config or checkpoint.untied_head != head:
        wrong = [*differences(bundle.config.source, checkpoint.config.source, "model")]
        raise BundleError(
            f"{bundle.path / MANIFEST}: its model configuration is not that of {checkpoint.path}, "
            f"so nothing can be compared: {listed(wrong or ['one has a head of its own'])}; "
            "convert again"
        )
    if checkpoint.tokenizer is None:
        raise CheckpointError(
            f"{checkpoint.path}: has no tokenizer.model, so it cannot answer questions"
        )
    return checkpoint, warnings


@contextmanager
def _known(
    folder: ReportFolder | None,
    bundle: Bundle,
    checkpoint: Checkpoint,
    place: Device,
    config: VerifyConfig,
    settings: Mapping[str, Any],
) -> Iterator[ResultCache]:
    """Opens the results of an earlier run; none without a folder."""
    from convert.bundle.results_file import identity
    from convert.support.versions import VERSION
    from runtime.verify.measure.results import FileResultCache, ResultCache

    if folder is None:
        yield ResultCache()
        return
    about = {
        "bundle": identity(bundle),
        "reference": checkpoint.source_hash(),
        "engine": place.description,
        "target": place.target,
        "toolkit": VERSION,
        "window": config.window,
        "settings": settings,
    }
    with folder.cases(about) as file:
        yield FileResultCache(file)


def _load_models(
    bundle: Bundle,
    checkpoint: Checkpoint,
    engine: EngineStages,
    session: EngineSession,
    progress: Progress,
) -> Models:
    from quantize.methods import find_method
    from runtime.inputs.prompt import Tokenizer
    from runtime.reference.arithmetic import LOADING, RoundedKVCache, apply_arithmetic
    from runtime.reference.load import load_reference
    from runtime.verify.files.stored_weights import load_stored
    from runtime.verify.measure.run import EngineUnderTest, Models
    from runtime.verify.stages import TorchStages

    assert bundle.tokenizer is not None, "the contents were checked"

    layers = bundle.config.decoder.num_hidden_layers
    progress(LOADING, 0, layers)
    arithmetic = load_reference(checkpoint, lazy=True)
    stored = find_method(bundle.plan.recipe.method).search
    if stored:
        load_stored(arithmetic, bundle.plan, bundle.weights(), progress)
    rounded = apply_arithmetic(arithmetic, bundle.plan, stored=stored, progress=progress)
    reference = load_reference(checkpoint, lazy=True)
    progress(LOADING, layers, layers)
    return Models(
        reference=TorchStages(reference),
        arithmetic=TorchStages(rounded, partial(RoundedKVCache, bundle.plan.kv)),
        bundle=EngineUnderTest(engine, session, Tokenizer(bundle.tokenizer)),
    )
