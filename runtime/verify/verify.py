"""`verify`: all checks of a bundle against the full-precision model, in order."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from convert.bundle.errors import BundleError
from convert.bundle.manifest import MANIFEST, Bundle
from convert.bundle.results_file import identity
from convert.checkpoint.reader import Checkpoint
from convert.support.progress import Progress, silent
from convert.support.versions import VERSION
from quantize.errors import CheckpointError, ConfigError
from quantize.methods import find_method
from runtime.engine_client.options import LOCAL, EngineOptions
from runtime.engine_client.place import Device
from runtime.engine_client.places import open_place
from runtime.inputs.prompt import Tokenizer
from runtime.reference.arithmetic import LOADING, RoundedKVCache, apply_arithmetic
from runtime.reference.load import load_reference
from runtime.sessions.engine_session import EngineSession
from runtime.sessions.loader import find_source, source_problem
from runtime.verify.cases import Case, built_in_cases, read_cases
from runtime.verify.check import Cause, Check
from runtime.verify.diagnose.isolate import find_causes
from runtime.verify.files.contents import check_contents
from runtime.verify.files.differences import differences, listed
from runtime.verify.files.stored_weights import load_stored
from runtime.verify.files.weights import check_brought, check_files, check_tensors
from runtime.verify.measure.results import FileResultCache, Outcome, ResultCache
from runtime.verify.measure.run import EngineUnderTest, Models, load_settings, run_cases
from runtime.verify.report.folder import ReportFolder
from runtime.verify.report.page.render import render
from runtime.verify.report.provenance import what_ran
from runtime.verify.report.report import Report, stored_tensors
from runtime.verify.stages import EngineStages, TorchStages

WINDOW = 1024  # tokens


@dataclass(frozen=True, kw_only=True)
class _Comparison:
    """What is compared, and how."""

    bundle: Path
    reference: str | None
    window: int
    engine: EngineOptions
    data: Path | None
    skip_bad: bool
    report: Path | None
    force: bool

    def __post_init__(self) -> None:
        """Checks combinations."""
        if self.skip_bad and self.data is None:
            raise ConfigError("--skip-bad needs --data")


def verify(
    bundle: str | Path,
    *,
    reference: str | Path | None = None,
    engine: str | None = LOCAL,
    threads: int | None = None,
    serial: str | None = None,
    window: int = WINDOW,
    data: str | Path | None = None,
    skip_bad: bool = False,
    report: str | Path | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Report:
    """Compares a bundle with the full-precision model, as `minicpmv verify` does.

    Args:
        bundle: a folder, made by `convert`.
        reference: the full-precision model, a folder or a hub id; None: the checkpoint that the
            bundle was made from.
        engine: where the bundle's engine runs: `local`, `qemu` or `adb`.
        threads: of the engine; None: as many as it finds best.
        serial: of the phone, for `adb`; None: $ANDROID_SERIAL, or the only one.
        window: context window, in tokens.
        data: a JSON Lines file of questions; None: the built-in ones.
        skip_bad: leave out lines of `data` that cannot be used.
        report: a folder for a web page and its data; None: none is written.
        force: accept a reference that the bundle was not made from.
        progress: receives the progress of every stage.

    Returns:
        All checks, `passed` if none failed, and the likeliest causes of those that did.

    Raises:
        BundleError: no bundle, or one whose program was altered.
        CheckpointError: the reference is missing, or not what the bundle was made from.
        ToolkitError: a line of the data that cannot be used, or no place for the report.
    """
    request = _Comparison(
        bundle=Path(bundle),
        reference=None if reference is None else str(reference),
        window=window,
        engine=EngineOptions(engine=engine, threads=threads, serial=serial),
        data=None if data is None else Path(data),
        skip_bad=skip_bad,
        report=None if report is None else Path(report),
        force=force,
    )
    return _verify(request, progress)


def _verify(request: _Comparison, progress: Progress) -> Report:
    started = time.monotonic()
    bundle = Bundle.open(request.bundle)
    settings = load_settings()
    folder = None if request.report is None else ReportFolder(request.report)
    cases = _cases(request, settings, with_pictures=bundle.config.vision is not None)
    place = open_place(bundle, request.engine)
    files = check_files(bundle, place.target, progress)
    checkpoint, warnings = _open_reference(bundle, request)
    # Stored results hold for the bundle as it was made.
    kept = folder if all(check.passed for check in files) else None
    with _known(kept, bundle, checkpoint, place, request, settings) as known:
        found = _measure(
            request, bundle, checkpoint, place, files, cases, known, settings, progress
        )
    report = Report(
        bundle=str(request.bundle),
        reference=str(checkpoint.path),
        quantization=bundle.plan.recipe.scheme.name,
        kv_cache=bundle.plan.kv,
        engine=place.engine,
        window=request.window,
        longest_prompt=found.outcome.longest_prompt,
        checks=found.checks,
        answers=found.outcome.answers,
        causes=found.causes,
        warnings=[*warnings, *found.warnings],
        tensors=stored_tensors(bundle.plan),
        positions=found.outcome.positions,
        ran=what_ran(bundle, checkpoint, place, found.hello, request.window),
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
    request: _Comparison,
    bundle: Bundle,
    checkpoint: Checkpoint,
    place: Device,
    files: Sequence[Check],
    cases: Sequence[Case],
    known: ResultCache,
    settings: Mapping[str, Any],
    progress: Progress,
) -> _Measured:

    assert checkpoint.tokenizer is not None
    tokenizer, limits, window = (
        Tokenizer(checkpoint.tokenizer),
        settings["thresholds"],
        request.window,
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
            models, tokenizer, cases, settings, window, progress, known, skip_bad=request.skip_bad
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
    try:
        return EngineSession(place, bundle.config, window=window)
    except BundleError as error:
        altered = [check.name for check in checks if check.stage == "files" and not check.passed]
        if not altered:
            raise
        raise BundleError(
            f"{', '.join(altered)}: altered: the SHA-256 is not the manifest's; {error}"
        ) from error


def _cases(request: _Comparison, settings: Mapping[str, Any], *, with_pictures: bool) -> list[Case]:

    if request.data is None:
        return built_in_cases(settings["built_in"], with_pictures=with_pictures)
    return read_cases(request.data, with_pictures=with_pictures, skip_bad=request.skip_bad)


def _open_reference(bundle: Bundle, request: _Comparison) -> tuple[Checkpoint, list[str]]:
    """Returns the checkpoint, and warnings about it."""
    checkpoint, warnings = find_source(bundle, request.reference), []
    problem = source_problem(bundle, checkpoint)
    if problem is not None:
        if not request.force:
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
    request: _Comparison,
    settings: Mapping[str, Any],
) -> Iterator[ResultCache]:
    """Opens the results of an earlier run; none without a folder."""
    if folder is None:
        yield ResultCache()
        return
    about = {
        "bundle": identity(bundle),
        "reference": checkpoint.source_hash(),
        "engine": place.description,
        "target": place.target,
        "toolkit": VERSION,
        "window": request.window,
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
