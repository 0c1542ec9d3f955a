"""From a checkpoint to a bundle: one tensor at a time, then an engine for every target.

The caller gives the folder, usually one of `OutputFolder`, and commits it.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from convert.bundle import (
    GENERATION,
    TOKENIZER,
    WEIGHTS,
    Bundle,
    FileRecord,
    Manifest,
    Source,
    TargetRecord,
    tensor_records,
)
from convert.calibration_store import CalibratedWeights
from convert.checkpoint import Checkpoint
from convert.compile import Target, compile_blocks
from convert.config import CONFIGS, ModelConfig
from convert.engine_build import build_engine
from convert.golden import can_answer, write_golden
from convert.plan import Plan, PlannedTensor
from convert.weights_file import Array, WeightsWriter
from quantize.errors import CheckpointError, ConfigError
from quantize.fast import CHUNK_VALUES, quantize_int8_fast
from quantize.layout import pack_int8_tiles, pack_tiles, tile_f16
from quantize.methods import Method, find_method, quantize_weight
from quantize.schemes import GroupScheme, row_chunks

HOST = "host"  # the target of this PC
ONNX = "onnx"  # a product of its own, not part of a bundle
MLC = "mlc-android"  # likewise
# What has a say in a bundle's bytes.
TOOLS = ("minicpmv", "apache-tvm", "apache-tvm-ffi", "numpy", "torch", "ziglang")
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
    source: Source,
    plan: Plan,
    targets: tuple[str, ...],
    folder: Path,
    progress: Progress,
    calibrated: CalibratedWeights | None = None,
) -> Manifest:
    """Fills an empty folder with a whole bundle.

    Args:
        checkpoint: what to convert.
        source: what the manifest says of it.
        plan: how every tensor is stored.
        targets: names of `configs/target/` files; one engine each.
        folder: where to write.
        progress: hears of every stage.
        calibrated: what calibration made, if the recipe's method has one.

    Raises:
        CheckpointError: a tensor holds NaN, infinity, or more than its format can.
    """
    write_weights(checkpoint, plan, folder / WEIGHTS, progress, calibrated)
    programs = {}
    for target in targets:
        program = f"engine/{target}"
        identity = build_program(checkpoint.config, plan, target, folder / program, progress)
        programs[target] = TargetRecord(program=program, program_id=identity)
    if checkpoint.tokenizer is not None:
        shutil.copyfile(checkpoint.tokenizer, folder / TOKENIZER)
    shutil.copyfile(CONFIGS / GENERATION, folder / GENERATION)
    manifest = Manifest(
        architecture=checkpoint.config.architecture,
        model=checkpoint.config.source,
        quantization=plan.recipe.source,
        source=source,
        targets=programs,
        tensors=tensor_records(plan),
        tools={"python": platform.python_version(), **{name: version(name) for name in TOOLS}},
        files=_file_records(folder, _files(folder), progress),
    )
    manifest.write(folder)
    return manifest


def write_weights(
    checkpoint: Checkpoint,
    plan: Plan,
    path: Path,
    progress: Progress,
    calibrated: CalibratedWeights | None = None,
) -> None:
    """Writes the weights file of a plan; one tensor is in memory at a time."""
    method = find_method(plan.recipe.method)
    assert (calibrated is not None) == method.calibrated, "the method asks for calibration"
    total = plan.nbytes
    done = 0
    with WeightsWriter(path, plan.stored) as writer:
        for tensor in plan.tensors:
            progress("weights", done, total)
            stored = None if calibrated is None else stored_form(tensor, plan, calibrated)
            if stored is None:
                stored = encode(checkpoint, tensor, plan.recipe.scheme, method)
            for name, values in stored.items():
                writer.write(name, values)
            done += tensor.nbytes
    progress("weights", total, total)


def stored_form(
    tensor: PlannedTensor, plan: Plan, calibrated: CalibratedWeights
) -> Mapping[str, Array] | None:
    """Returns the stored form of what calibration made of a tensor; None if it made nothing."""
    values = calibrated.replaced(tensor.name)
    if values is not None:
        return {tensor.name: values.astype(np.float16 if tensor.format == "f16" else np.float32)}
    codes = calibrated.codes(tensor.name) if tensor.format == "q4" else None
    if codes is None:
        return None
    packed = pack_tiles(*codes, plan.recipe.scheme)
    return dict(zip((f"{tensor.name}.q_weight", f"{tensor.name}.q_scale"), packed, strict=True))


def read_weight(checkpoint: Checkpoint, tensor: PlannedTensor) -> Array:
    """Reads a planned tensor: float32 where it is stored so, float16 otherwise.

    Raises:
        CheckpointError: it holds NaN, infinity, or more than its format can.
    """
    dtype = torch.float32 if tensor.format == "f32" else torch.float16
    try:
        weight: Array = tensor.rule.make(checkpoint.read, dtype).contiguous().numpy()
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from error
    if dtype == torch.float16 and not np.isfinite(weight).all():
        count = np.count_nonzero(~np.isfinite(weight))
        raise CheckpointError(
            f"{checkpoint.path}: {', '.join(tensor.rule.sources)}: {count} values are beyond "
            f"float16's {np.finfo(np.float16).max:.0f}; is the checkpoint damaged?"
        )
    return weight


def encode(
    checkpoint: Checkpoint, tensor: PlannedTensor, scheme: GroupScheme, method: Method
) -> Mapping[str, Array]:
    """Reads a planned tensor and brings it into its stored form; see `read_weight`."""
    weight = read_weight(checkpoint, tensor)
    if tensor.format in ("q4", "q8"):
        code = np.uint8 if tensor.format == "q4" else np.int8
        weights, scales = (
            np.empty(spec.shape, dtype)
            for spec, dtype in zip(tensor.stored, (code, np.float16), strict=True)
        )
        first, (count, columns) = 0, weight.shape
        for rows in row_chunks(count, columns, CHUNK_VALUES):
            if tensor.format == "q4":
                q, scale = quantize_weight(weight[rows], scheme, method, name=tensor.name)
                q_weight, q_scale = pack_tiles(q, scale, scheme)
            else:
                q, scale = quantize_int8_fast(weight[rows], name=tensor.name)
                q_weight, q_scale = pack_int8_tiles(q, scale)
            last = first + len(q_weight)
            weights[first:last], scales[first:last] = q_weight, q_scale
            first = last
        return {f"{tensor.name}.q_weight": weights, f"{tensor.name}.q_scale": scales}
    return {tensor.name: tile_f16(weight) if tensor.format == "f16_tiled" else weight}


def build_program(
    config: ModelConfig, plan: Plan, target: str, output: Path, progress: Progress
) -> str:
    """Compiles a model's blocks and links the engine that holds them; returns its program id.

    Args:
        config: the model's geometry.
        plan: how its matrices are stored.
        target: a file of `configs/target/`.
        output: the program to write.
        progress: hears of every stage.

    Raises:
        ToolkitError: an unknown target, a format without kernels, or something that does not
            compile.
    """
    made_for = Target.load(target)
    with tempfile.TemporaryDirectory() as objects:
        blocks = compile_blocks(
            config,
            plan,
            made_for,
            Path(objects),
            lambda stage: progress(f"{stage} for {target}", 0, 0),
        )
        identity = blocks.program_id
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
