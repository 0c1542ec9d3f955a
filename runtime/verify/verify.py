"""`verify`: all checks of a bundle against the full-precision model, in order."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from convert.bundle.bundle_card import bundle_card
from convert.bundle.card import check_card, write_card
from convert.bundle.errors import BundleError
from convert.bundle.licence import Licence
from convert.bundle.manifest import MANIFEST, Bundle
from convert.bundle.results_file import identity
from convert.bundle.targets import INT8_ATTENTION
from convert.calibrate.built_in import default_samples
from convert.checkpoint.reader import Checkpoint
from convert.mlc.manifest import MANIFEST as MLC_MANIFEST
from convert.support.progress import Progress, silent
from convert.support.whole_file import check_replaceable
from quantize.methods import find_method
from runtime.engine_client.options import LOCAL, MLC, EngineOptions
from runtime.engine_client.place import Device
from runtime.engine_client.places import open_place
from runtime.inputs.defaults import GenerationDefaults
from runtime.inputs.prompt import Tokenizer
from runtime.reference.arithmetic import LOADING, RoundedKVCache, apply_arithmetic
from runtime.reference.load import load_reference
from runtime.sessions.engine_session import EngineSession
from runtime.verify.cases import Case
from runtime.verify.check import Cause, Check
from runtime.verify.diagnose.isolate import find_causes
from runtime.verify.files.contents import check_contents
from runtime.verify.files.model import require_same_model
from runtime.verify.files.stored_weights import load_stored
from runtime.verify.files.weights import (
    BundleTensors,
    check_brought,
    check_files,
    check_tensors,
)
from runtime.verify.measure.kept import Kept, ReferenceWriter
from runtime.verify.measure.noise import load_noise_floor
from runtime.verify.measure.reference import Reference, kept_results
from runtime.verify.measure.results import Outcome, ResultCache
from runtime.verify.measure.run import EngineUnderTest, Models, load_settings, run_cases
from runtime.verify.measure.sensitivity import Sensitivity, measure_sensitivity
from runtime.verify.report.card import accuracy
from runtime.verify.report.folder import ReportFolder, known_results
from runtime.verify.report.page.render import render
from runtime.verify.report.provenance import what_ran
from runtime.verify.report.report import Report, stored_tensors
from runtime.verify.request import Request
from runtime.verify.stages import EngineStages, TorchStages


def verify(
    bundle: str | Path,
    *,
    reference: str | Path | None = None,
    engine: str | None = LOCAL,
    threads: int | None = None,
    serial: str | None = None,
    cpu: str | None = None,
    window: int | None = None,
    data: str | Path | None = None,
    skip_bad: bool = False,
    report: str | Path | None = None,
    force: bool = False,
    save_reference: str | Path | None = None,
    reference_results: str | Path | None = None,
    noise_floor: bool = True,
    card: bool = False,
    sensitivity: str | Path | None = None,
    progress: Progress = silent,
) -> Report:
    """Compares a bundle with the full-precision model, as `minicpmv verify` does.

    Args:
        bundle: a folder, made by `convert`; for the engine `mlc` a package for MLC-LLM.
        reference: the full-precision model, a folder or a hub id; None: the bundle's source.
        engine: where the engine runs: `local`, `qemu`, `adb` or `hdc`; `mlc` for a package.
        threads: of the engine; None: as many as it finds best.
        serial: of the phone, for `adb` and `hdc`; None: see `EngineOptions`.
        cpu: that qemu emulates, for `qemu`, in its words; None: the newest that it knows.
        window: context window, in tokens; None: the model's or package's own.
        data: a JSON Lines file of questions; None: the built-in ones.
        skip_bad: leave out lines of `data` that cannot be used.
        report: a folder for a web page and its data; None: none is written.
        force: accept a reference that the bundle was not made from.
        save_reference: a file to write the reference's results to.
        reference_results: such a file, to read them from instead of running the reference.
        noise_floor: whether to measure what the reference loses in the checkpoint's own 16 bits.
        card: whether to write the figures into the `README.md` of what is compared.
        sensitivity: a file for a recipe that stores the tensors in int8 that gain most; measured.
        progress: receives the progress of every stage.

    Returns:
        All checks, `passed` if none failed, and the likeliest causes of those that did.

    Raises:
        ToolkitError: bundle, reference or a file cannot be used; its subclass says which.
    """
    request = Request(
        artifact=Path(bundle),
        reference=None if reference is None else str(reference),
        window=window,
        engine=EngineOptions(engine=engine, threads=threads, serial=serial, cpu=cpu),
        data=None if data is None else Path(data),
        report=None if report is None else Path(report),
        save_reference=None if save_reference is None else Path(save_reference),
        reference_results=None if reference_results is None else Path(reference_results),
        sensitivity=None if sensitivity is None else Path(sensitivity),
        **{"skip_bad": skip_bad, "force": force, "noise_floor": noise_floor, "card": card},
    )
    return (_verify_package if engine == MLC else _verify_bundle)(request, progress)


def _verify_package(request: Request, progress: Progress) -> Report:
    from runtime.verify.mlc.run import verify_package  # loads TVM, which no bundle needs

    return verify_package(request, progress)


def _verify_bundle(request: Request, progress: Progress) -> Report:
    started = time.monotonic()
    bundle = _open_bundle(request.artifact)
    settings = load_settings()
    folder = None if request.report is None else ReportFolder(request.report)
    if request.card:
        check_card(bundle.path)
    if request.sensitivity is not None:
        check_replaceable(request.sensitivity)
    cases = request.cases(settings, bundle.config.vision)
    place = open_place(bundle, request.engine)
    program = bundle.program(place.target).path
    files = check_files(bundle.path, bundle.manifest.files, program, progress)
    checkpoint, warnings = request.open_reference(bundle.manifest.source)
    require_same_model(bundle.path / MANIFEST, bundle.config, bundle.plan, checkpoint)
    # Stored results hold for the bundle as it was made; a case that is not measured saves nothing.
    stored = all(check.passed for check in files) and request.save_reference is None
    window = request.window_or(_window(bundle))
    about = {
        "bundle": identity(bundle),
        "engine": place.description,
        "target": place.target,
        "noise floor": request.noise_floor,
    }
    length = settings["built_in"]["max_new_tokens"]
    with (
        known_results(folder if stored else None, about, checkpoint, window, settings) as known,
        kept_results(request, checkpoint, cases, window, length, progress) as kept,
    ):
        found = _measure(
            request, bundle, checkpoint, place, files, cases, known, kept, settings, progress
        )
    report = Report(
        bundle=str(request.artifact),
        reference=str(checkpoint.path),
        quantization=bundle.plan.recipe.scheme.name,
        kv_cache=bundle.plan.kv,
        engine=place.engine,
        window=window,
        longest_prompt=found.outcome.longest_prompt,
        checks=found.checks,
        answers=found.outcome.answers,
        causes=found.causes,
        warnings=[*warnings, *found.warnings],
        tensors=stored_tensors(bundle.plan),
        positions=found.outcome.positions,
        ran=what_ran(bundle, checkpoint, place, found.hello, window),
        earlier_cases=known.reused,
        sensitivity=_measure_sensitivity(request, bundle, checkpoint, progress),
        seconds=time.monotonic() - started,
    )
    if folder is not None:
        folder.write(render(report, cases), report.to_json())
    if request.card:
        licence, figures = Licence.of(checkpoint.path), accuracy(report, "bundle")
        write_card(bundle.path, bundle_card(bundle), licence, figures)
    return report


def _measure_sensitivity(
    request: Request, bundle: Bundle, checkpoint: Checkpoint, progress: Progress
) -> Sensitivity | None:
    if request.sensitivity is None:
        return None
    pictures = bundle.config.vision is not None
    source = bundle.manifest.source
    samples = default_samples(demo=source.path if source.demo else None, pictures=pictures)
    stored = BundleTensors(bundle.plan, bundle.weights())
    return measure_sensitivity(checkpoint, stored, samples, request.sensitivity, progress)


def _window(bundle: Bundle) -> int:
    """Returns the default context window of a bundle's model, tokens."""
    return GenerationDefaults.load().for_model(bundle.config).window


def _open_bundle(path: Path) -> Bundle:
    if (path / MLC_MANIFEST).exists() and not (path / MANIFEST).exists():
        raise BundleError(f"{path}: a package for MLC-LLM; to verify it: --engine {MLC}")
    return Bundle.open(path)


@dataclass(frozen=True)
class _Measured:
    """The results for files, tensors and cases."""

    checks: list[Check]
    outcome: Outcome
    causes: list[Cause]
    warnings: list[str]
    hello: Mapping[str, Any]  # the engine's first line


def _measure(
    request: Request,
    bundle: Bundle,
    checkpoint: Checkpoint,
    place: Device,
    files: Sequence[Check],
    cases: Sequence[Case],
    known: ResultCache,
    kept: Kept | None,
    settings: Mapping[str, Any],
    progress: Progress,
) -> _Measured:

    assert checkpoint.tokenizer is not None
    tokenizer, limits, window = (
        Tokenizer(checkpoint.tokenizer, checkpoint.config),
        settings["thresholds"],
        request.window_or(_window(bundle)),
    )
    tensors = BundleTensors(bundle.plan, bundle.weights())
    checks = [*files, *check_tensors(tensors, checkpoint, limits, progress)]
    place.prepare(progress)
    checks += check_brought(place, progress)
    with closing(_start(place, bundle, window, checks)) as session:
        hello = session.client().about
        engine = EngineStages(session)
        contents = check_contents(bundle, checkpoint, engine, progress)
        checks += contents.checks
        models = _load_models(bundle, checkpoint, kept, engine, session, progress)
        if request.noise_floor:
            models = replace(models, noise=load_noise_floor(checkpoint, kept))
        outcome = run_cases(
            models,
            tokenizer,
            cases,
            settings,
            window,
            progress,
            known,
            skip_bad=request.skip_bad,
            with_patterns=request.data is None,
        )
        checks += outcome.checks
        if isinstance(kept, ReferenceWriter):
            kept.commit()
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


def _load_models(
    bundle: Bundle,
    checkpoint: Checkpoint,
    kept: Kept | None,
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
        load_stored(arithmetic, BundleTensors(bundle.plan, bundle.weights()), progress)
    rounded = apply_arithmetic(
        arithmetic,
        bundle.plan,
        stored=stored,
        progress=progress,
        int8_attention=session.client().picture_kind in INT8_ATTENTION,
    )
    progress(LOADING, layers, layers)
    return Models(
        reference=Reference(
            checkpoint.config, lambda: TorchStages(load_reference(checkpoint, lazy=True)), kept
        ),
        arithmetic=TorchStages(rounded, partial(RoundedKVCache, bundle.plan.kv)),
        bundle=EngineUnderTest(engine, session, Tokenizer(bundle.tokenizer)),
    )
