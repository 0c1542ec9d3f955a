"""Fills a bundle's folder: weights, an engine for every target, manifest, golden answers."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path

from msgspec import structs

from convert.bundle.journal import JOURNAL, Journal
from convert.bundle.manifest import (
    GENERATION,
    TOKENIZER,
    WEIGHTS,
    Bundle,
    BundleSource,
    FileRecord,
    Manifest,
    TargetRecord,
    tensor_records,
)
from convert.bundle.plan import Plan
from convert.bundle.targets import HOST
from convert.calibrate.store import CalibratedWeights
from convert.checkpoint.config import CONFIGS
from convert.conversion.conversion import Conversion
from convert.encode import write_weights
from convert.engine.program import build_program, compile_ahead
from convert.golden import can_answer, write_golden
from convert.support.hashing import hash_sources
from convert.support.progress import Progress
from convert.support.versions import TOOLKIT, package_version

# The tools that a bundle's bytes depend on.
TOOLS = (TOOLKIT, "apache-tvm", "apache-tvm-ffi", "numpy", "torch", "ziglang")
# The sources that the weights' bytes depend on.
_WEIGHT_SOURCES = (
    "quantize/*.py",
    "convert/encode.py",
    "convert/checkpoint/positions.py",
    "convert/checkpoint/tensor_tables.py",
    "convert/bundle/weights_file.py",
)


def write_bundle(
    conversion: Conversion,
    plan: Plan,
    folder: Path,
    calibrated: CalibratedWeights | None = None,
    journal: Journal | None = None,
) -> Manifest:
    """Fills a folder with a bundle: everything but the golden answers.

    Args:
        conversion: the checkpoint, the targets that get an engine, and who follows the work.
        plan: how every tensor is stored.
        folder: usually one of `OutputFolder`, which the caller commits; empty, except for what
            the journal lists.
        calibrated: what calibration made; required if the recipe's method calibrates.
        journal: records each tensor, so that a later run can resume; the caller removes it.

    Raises:
        CheckpointError: a tensor holds NaN, infinity, or a value beyond its format.
        ToolkitError: an engine could not be built.
    """
    checkpoint, targets = conversion.checkpoint, conversion.config.targets
    progress, phases = conversion.progress, conversion.phases
    source = conversion.source
    with compile_ahead(targets, progress, phases) as ahead:
        with phases.measure("weights"):
            weights = write_weights(
                checkpoint, plan, folder / WEIGHTS, progress, calibrated, journal
            )
        programs = {}
        for target in targets:
            program = f"engine/{target}"
            identity = build_program(
                checkpoint.config, plan, target, folder / program, progress, phases, ahead
            )
            programs[target] = TargetRecord(program=program, program_id=identity)
    if checkpoint.tokenizer is not None:
        shutil.copyfile(checkpoint.tokenizer, folder / TOKENIZER)
    shutil.copyfile(CONFIGS / GENERATION, folder / GENERATION)
    others = [path for path in _files(folder) if path.name not in (WEIGHTS, JOURNAL)]
    files = {WEIGHTS: weights, **_file_records(folder, others, progress)}
    manifest = Manifest(
        architecture=checkpoint.config.architecture,
        model=checkpoint.config.source,
        quantization=plan.recipe.source,
        kv_cache=plan.kv,
        source=source,
        targets=programs,
        tensors=tensor_records(plan),
        tools=tool_versions(),
        files=dict(sorted(files.items())),
    )
    manifest.write(folder)
    return manifest


def tool_versions() -> dict[str, str]:
    """Returns the versions of the tools that a bundle's bytes depend on."""
    return {"python": platform.python_version(), **{name: package_version(name) for name in TOOLS}}


def open_journal(
    folder: Path, source: BundleSource, plan: Plan, calibrated: CalibratedWeights | None
) -> Journal:
    """Opens the journal of an unfinished bundle; it names all that the weights depend on."""
    rows = [[t.name, t.format, list(t.rule.shape), list(t.rule.sources)] for t in plan.tensors]
    planned = json.dumps([plan.recipe.source, rows], sort_keys=True)
    about = {
        "checkpoint": source.sha256,
        "recipe": hashlib.sha256(planned.encode()).hexdigest(),
        "calibration": None if calibrated is None else calibrated.identity,
        "toolkit": hash_sources(CONFIGS.parent, _WEIGHT_SOURCES),
        "versions": tool_versions(),
    }
    return Journal(folder, about)


def add_golden(folder: Path, manifest: Manifest, progress: Progress) -> Manifest:
    """Adds the host engine's answers to the golden prompts, where that engine can run.

    Returns:
        The manifest with the new files; the same one if there are none.
    """
    bundle = Bundle.open(folder)
    if not can_answer(bundle, HOST):
        return manifest
    added = [folder / name for name in write_golden(bundle, HOST, progress)]
    files = {**manifest.files, **_file_records(folder, added, progress)}
    manifest = structs.replace(manifest, files=dict(sorted(files.items())))
    manifest.write(folder)
    return manifest


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _file_records(folder: Path, files: Sequence[Path], progress: Progress) -> dict[str, FileRecord]:
    """Returns the size and hash of files of a folder."""
    total = sum(path.stat().st_size for path in files)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress("hashes", done, total)

    return {path.relative_to(folder).as_posix(): FileRecord.of(path, advance) for path in files}
