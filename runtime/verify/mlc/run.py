"""`verify --engine mlc`: an MLC package against the full-precision model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from convert.bundle.card import check_card, write_card
from convert.bundle.errors import BundleError
from convert.bundle.kv_cache import FP16
from convert.bundle.licence import Licence
from convert.bundle.manifest import FileRecord
from convert.checkpoint.reader import Checkpoint
from convert.checkpoint.tokenizer_file import open_tokenizer
from convert.mlc.card import package_card
from convert.mlc.manifest import MANIFEST
from convert.mlc.names import CHAT_CONFIG, TOKENIZER_JSON
from convert.mlc.opened import MlcPackage
from convert.mlc.package import TOKENIZER, TOKENIZER_FILES, chat_config
from convert.mlc.same_ids import first_difference
from convert.mlc.tokenizer_json import open_tokenizer_json
from convert.support.progress import Progress
from quantize.errors import ConfigError
from runtime.engine_client.options import MLC
from runtime.inputs.prompt import Tokenizer
from runtime.mlc.engine import HOST, MlcEngine, find_library
from runtime.reference.arithmetic import LOADING, Inputs, RoundedKVCache, apply_arithmetic
from runtime.reference.load import load_reference
from runtime.verify.check import Cause, Check
from runtime.verify.files.contents import SETTINGS, Contents
from runtime.verify.files.differences import differences, listed
from runtime.verify.files.model import require_same_model
from runtime.verify.files.stored_weights import load_stored
from runtime.verify.files.tokenizer import STAGE as TOKENIZER_STAGE
from runtime.verify.files.tokenizer import file_check, tokenizer_causes
from runtime.verify.files.weights import check_files, check_tensors
from runtime.verify.measure.kept import SAVE, USE
from runtime.verify.measure.run import load_settings
from runtime.verify.mlc.measure import SAME_WEIGHTS, MlcModels, run_cases
from runtime.verify.mlc.tensors import PackageTensors
from runtime.verify.report.card import accuracy
from runtime.verify.report.folder import ReportFolder, known_results
from runtime.verify.report.page.render import render
from runtime.verify.report.provenance import what_compared
from runtime.verify.report.report import Report, stored_tensors
from runtime.verify.request import Request
from runtime.verify.stages import TorchStages


def verify_package(request: Request, progress: Progress) -> Report:
    """Compares an MLC package with the full-precision model.

    Raises:
        BundleError: no package, or one whose library is missing, altered, or another model's.
        CheckpointError: the reference is missing, or not what the package was made from.
        ConfigError: an option that means nothing here.
    """
    started = time.monotonic()
    _check_options(request)
    package = MlcPackage.open(request.artifact)
    settings, library = load_settings(), find_library(package)
    folder = None if request.report is None else ReportFolder(request.report)
    if request.card:
        check_card(package.path)
    vision = package.config.vision if package.manifest.pictures else None
    cases = request.cases(settings, vision)
    files = check_files(package.path, package.manifest.files, library, progress)
    checkpoint, warnings = request.open_reference(package.manifest.source)
    contents = _check_contents(package, checkpoint)
    kept = folder if all(check.passed for check in files) else None
    about = {"package": FileRecord.of(package.path / MANIFEST).sha256, "engine": MLC}
    tensors = PackageTensors(package)
    checks = [*files, *check_tensors(tensors, checkpoint, settings["thresholds"], progress)]
    checks += contents.checks
    models = _load_models(package, checkpoint, tensors, library_engine(library, package), progress)
    assert checkpoint.tokenizer is not None, "the request opened it"
    tokenizer = Tokenizer(checkpoint.tokenizer, checkpoint.config)
    with known_results(kept, about, checkpoint, package.window, settings) as known:
        outcome = run_cases(models, package, tokenizer, cases, settings, progress, known)
    checks += outcome.checks
    report = Report(
        bundle=str(request.artifact),
        reference=str(checkpoint.path),
        quantization=package.plan.recipe.scheme.name,
        kv_cache=FP16,
        engine=MLC,
        window=models.engine.window,
        longest_prompt=outcome.longest_prompt,
        checks=checks,
        answers=outcome.answers,
        causes=_causes(checks, package, checkpoint, contents),
        warnings=warnings,
        tensors=stored_tensors(package.plan),
        positions=outcome.positions,
        ran=_what_ran(package, checkpoint),
        earlier_cases=known.reused,
        seconds=time.monotonic() - started,
    )
    if folder is not None:
        folder.write(render(report, cases), report.to_json())
    if request.card:
        licence, figures = Licence.of(checkpoint.path), accuracy(report, "package")
        write_card(package.path, package_card(package.manifest), licence, figures)
    return report


def library_engine(library: Path, package: MlcPackage) -> MlcEngine:
    """Loads a package's library for this machine; see `MlcEngine`."""
    return MlcEngine(library, package.params)


def _check_options(request: Request) -> None:
    for name, file in ((SAVE, request.save_reference), (USE, request.reference_results)):
        if file is not None:
            raise ConfigError(f"{name} is for a bundle's engine, which is fed stage by stage")
    for name, value in (("--threads", request.engine.threads), ("--window", request.window)):
        if value is not None:
            why = "TVM has threads of its own" if name == "--threads" else "a package has its own"
            raise ConfigError(f"{name} is for a bundle's engine; {why}")
    if request.sensitivity is not None:
        raise ConfigError("--sensitivity is for a bundle, not for a package for MLC-LLM")
    if request.skip_bad:
        raise ConfigError("--skip-bad is for a bundle's engine; mend the file")


def _check_contents(package: MlcPackage, checkpoint: Checkpoint) -> Contents:
    """Compares the tokenizer and the chat configuration with what convert writes."""
    if package.tokenizer is None:
        raise BundleError(
            f"{package.path}: has no tokenizer.model, but its checkpoint has one; convert again"
        )
    require_same_model(package.path / MANIFEST, package.config, package.plan, checkpoint)
    assert checkpoint.tokenizer is not None, "the request opened it"
    found = Contents()
    found.checks.append(file_check(package.tokenizer, checkpoint.tokenizer))
    if package.tokenizer_json is not None:
        read = open_tokenizer_json(package.tokenizer_json)
        difference = first_difference(open_tokenizer(checkpoint.tokenizer), read)
        found.add(TOKENIZER_STAGE, TOKENIZER_JSON, [] if difference is None else [difference])
    names = [name for name in TOKENIZER_FILES if name in package.manifest.files]
    expected = chat_config(checkpoint, names, pictures=package.manifest.pictures)
    found.add(SETTINGS, CHAT_CONFIG, list(differences(package.chat, expected, "")))
    return found


def _load_models(
    package: MlcPackage,
    checkpoint: Checkpoint,
    tensors: PackageTensors,
    engine: MlcEngine,
    progress: Progress,
) -> MlcModels:
    layers = package.config.decoder.num_hidden_layers
    progress(LOADING, 0, layers)
    model = load_stored(
        load_reference(checkpoint, lazy=True),
        tensors,
        progress,
        inputs=Inputs.FLOAT,
    )
    model = apply_arithmetic(
        model, package.plan, stored=True, progress=progress, inputs=Inputs.FLOAT
    )
    reference = load_reference(checkpoint, lazy=True)
    progress(LOADING, layers, layers)
    cache = partial(RoundedKVCache, FP16)
    return MlcModels(TorchStages(reference), TorchStages(model, cache), engine)


def _causes(
    checks: Sequence[Check], package: MlcPackage, checkpoint: Checkpoint, contents: Contents
) -> list[Cause]:
    """Names what explains the checks that failed."""
    failed = [check for check in checks if not check.passed]
    altered = [check.name for check in failed if check.stage == "files"]
    if altered:
        return [Cause(", ".join(altered), "altered: the SHA-256 is not the manifest's")]
    assert package.tokenizer is not None and checkpoint.tokenizer is not None
    asked = failed
    if TOKENIZER_JSON in {cause.where for cause in contents.causes}:  # prompts went through it
        asked = [check for check in failed if check.name == TOKENIZER]
    causes = tokenizer_causes(asked, package.tokenizer, checkpoint.tokenizer)
    causes += contents.causes
    tensors = list(dict.fromkeys(c.name for c in failed if c.stage in ("weights", "codes")))
    if tensors:
        causes.append(Cause(listed(tensors), "stored otherwise than the checkpoint says"))
    same = [check for check in failed if check.metric == SAME_WEIGHTS]
    if same and not tensors:
        stages = ", ".join(dict.fromkeys(check.stage for check in same))
        causes.append(
            Cause(
                "the library",
                f"computes other {stages} than its own weights give; compile the package again",
            )
        )
    return causes


def _what_ran(package: MlcPackage, checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    manifest = package.manifest
    record = manifest.libraries[HOST]
    return {
        "engine": {
            "engine": MLC,
            "where": "TVM's virtual machine on this computer's processor",
            "library": record.file,
            "library, SHA-256": manifest.files[record.file].sha256,
            "compiled by mlc_llm": record.mlc_llm,
            "context window, tokens": package.window,
        },
        "bundle": {
            "path": str(package.path),
            "recipe": package.plan.recipe.scheme.name,
            "method": manifest.method,
            "KV cache": FP16,
            "bits per weight": round(8 * manifest.weights_bytes / manifest.parameters, 3),
            "weights, bytes": manifest.weights_bytes,
            "made from, SHA-256": manifest.source.sha256,
            "made with": ", ".join(f"{name} {number}" for name, number in manifest.tools.items()),
        },
        **what_compared(checkpoint),
    }
