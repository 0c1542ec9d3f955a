"""From a checkpoint to a bundle: one tensor at a time, then an engine for every target.

The caller gives the folder, usually one of `OutputFolder`, and commits it.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

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
from convert.bundle.weights_writer import WeightsWriter
from convert.calibrate.store import CalibratedWeights
from convert.checkpoint.config import CONFIGS, ModelConfig
from convert.checkpoint.reader import Checkpoint
from convert.encode import ReadOnce, encode, encode_calibrated, read_weight
from convert.engine.build import build_engine
from convert.engine.compile import Target, compile_blocks
from convert.engine.prebuild import EnginePrebuild
from convert.golden import can_answer, write_golden
from convert.support.hashing import hash_sources
from convert.support.phases import Phases
from convert.support.scratch import scratch_folder
from convert.support.versions import TOOLKIT, package_version
from quantize.errors import ConfigError
from quantize.methods import find_method

HOST = "host"  # the target of this PC
ONNX = "onnx"  # a product of its own, not part of a bundle
MLC = "mlc-android"  # likewise
# What has a say in a bundle's bytes.
TOOLS = (TOOLKIT, "apache-tvm", "apache-tvm-ffi", "numpy", "torch", "ziglang")
# Sources that have a say in the weights' bytes.
_WEIGHT_SOURCES = (
    "quantize/*.py",
    "convert/encode.py",
    "convert/checkpoint/positions.py",
    "convert/checkpoint/tensor_tables.py",
    "convert/bundle/weights_file.py",
)
_ENGINES = "build engines"  # a phase
# Room for compiled programs and the manifest, beside the weights.
PROGRAM_BYTES = 16 * 2**20

Progress = Callable[[str, int, int], None]  # stage, done, in all (0: not known)


def known_targets() -> tuple[str, ...]:
    """Returns what can be converted for."""
    return *Target.names(), ONNX, MLC


def parse_targets(text: str) -> tuple[str, ...]:
    """Splits `host,onnx` and checks every name.

    Raises:
        ConfigError: an unknown target, or one named twice.
    """
    targets = tuple(part.strip() for part in text.split(","))
    for target in targets:
        if target not in known_targets():
            raise ConfigError(f"target {target!r} is unknown; known: {', '.join(known_targets())}")
    if len(set(targets)) != len(targets):
        raise ConfigError(f"targets {text!r}: one is named twice")
    return targets


def write_bundle(
    checkpoint: Checkpoint,
    source: BundleSource,
    plan: Plan,
    targets: tuple[str, ...],
    folder: Path,
    progress: Progress,
    calibrated: CalibratedWeights | None = None,
    *,
    journal: Journal | None = None,
    phases: Phases | None = None,
) -> Manifest:
    """Fills a folder with a whole bundle.

    Args:
        checkpoint: what to convert.
        source: what the manifest says of it.
        plan: how every tensor is stored.
        targets: names of `configs/target/` files; one engine each.
        folder: where to write; empty, but for what a journal says to go on with.
        progress: hears of every stage.
        calibrated: what calibration made, if the recipe's method has one.
        journal: gets a mark for every tensor; the caller removes it. None: there is no going on.
        phases: measures the work.

    Raises:
        CheckpointError: a tensor holds NaN, infinity, or more than its format can.
    """
    phases = phases or Phases()
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
    """Returns the versions of what has a say in a bundle's bytes."""
    return {"python": platform.python_version(), **{name: package_version(name) for name in TOOLS}}


def open_journal(
    folder: Path, source: BundleSource, plan: Plan, calibrated: CalibratedWeights | None
) -> Journal:
    """Opens the journal of a bundle in the making, with all that its weights follow from."""
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


def write_weights(
    checkpoint: Checkpoint,
    plan: Plan,
    path: Path,
    progress: Progress,
    calibrated: CalibratedWeights | None = None,
    journal: Journal | None = None,
) -> FileRecord:
    """Writes the weights file of a plan, or the rest of it; one tensor is made at a time."""
    method = find_method(plan.recipe.method)
    assert (calibrated is not None) == method.calibrated, "the method asks for calibration"
    ends = list(accumulate(len(tensor.stored) for tensor in plan.tensors))
    marks = [mark for mark in journal.marks if mark.tensors in ends] if journal else []
    with WeightsWriter(path, plan.stored, marks) as writer:
        if journal is not None:
            journal.begin(writer.kept)
        first = 0 if writer.kept is None else ends.index(writer.kept.tensors) + 1
        missing = plan.tensors[first:]
        made = {t.name for t in missing if calibrated is not None and calibrated.has(t.name)}
        read = ReadOnce(checkpoint.read, [t for t in missing if t.name not in made])
        total = plan.nbytes
        done = sum(tensor.nbytes for tensor in plan.tensors[:first])
        for tensor in missing:
            progress("weights", done, total)
            stored = None if calibrated is None else encode_calibrated(tensor, plan, calibrated)
            if stored is None:
                weight = read_weight(checkpoint, tensor, read)
                stored = encode(weight, tensor, plan.recipe.scheme, method)
            for spec, values in zip(tensor.stored, stored, strict=True):
                writer.write(spec.name, values)
            if journal is not None:
                writer.mark(journal.add)
            done += tensor.nbytes
        digest = writer.sha256()
    progress("weights", total, total)
    return FileRecord(size=total, sha256=digest)


@contextmanager
def compile_ahead(
    targets: Sequence[str], progress: Progress, phases: Phases
) -> Iterator[EnginePrebuild]:
    """Compiles C++ of the targets' engines while the `with` block does other work."""
    triples = [Target.load(target).link for target in targets]
    with phases.programs_apart(_ENGINES), EnginePrebuild(triples, progress) as ahead:
        yield ahead


def build_program(
    config: ModelConfig,
    plan: Plan,
    target: str,
    output: Path,
    progress: Progress,
    phases: Phases | None = None,
    ahead: EnginePrebuild | None = None,
) -> str:
    """Compiles a model's blocks and links the engine that holds them; returns its program id.

    Args:
        config: the model's geometry.
        plan: how its matrices are stored.
        target: a file of `configs/target/`.
        output: the program to write.
        progress: hears of every stage.
        phases: measures the work.
        ahead: compiles the target's C++ already.

    Raises:
        ToolkitError: an unknown target, a format without kernels, or something that does not
            compile.
    """
    made_for = Target.load(target)
    phases = phases or Phases()
    with scratch_folder() as objects:
        with phases.measure("compile blocks"):
            blocks = compile_blocks(
                config,
                plan,
                made_for,
                objects,
                lambda stage: progress(f"{stage} for {target}", 0, 0),
            )
        identity = blocks.program_id
        with phases.measure(_ENGINES):
            if ahead is not None:
                ahead.wait(made_for.link)
            build_engine(target, made_for.link, blocks.libraries, output, identity, progress)
    return identity


def add_golden(folder: Path, manifest: Manifest, progress: Progress) -> Manifest:
    """Lets a bundle's engine answer the golden prompts, where it can run; adds what it says."""
    bundle = Bundle.open(folder)
    if not can_answer(bundle, HOST):
        return manifest
    added = [folder / name for name in write_golden(bundle, HOST, progress)]
    files = {**manifest.files, **_file_records(folder, added, progress)}
    manifest = replace(manifest, files=dict(sorted(files.items())))
    manifest.write(folder)
    return manifest


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _file_records(folder: Path, files: Sequence[Path], progress: Progress) -> dict[str, FileRecord]:
    """Measures files of a folder."""
    total = sum(path.stat().st_size for path in files)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress("hashes", done, total)

    return {path.relative_to(folder).as_posix(): FileRecord.of(path, advance) for path in files}
