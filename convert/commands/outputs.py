"""What `minicpmv convert` makes, each with its summary: a bundle, ONNX, a package for MLC-LLM."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from convert.bundle.kv_cache import describe_kv
from convert.bundle.manifest import BundleSource
from convert.bundle.plan import Plan
from convert.calibrate.store import CalibratedWeights
from convert.checkpoint.reader import Checkpoint
from convert.commands.inputs import calibrate_weights
from convert.commands.options import ConvertConfig
from convert.mlc.compile import MlcCompiler, command_for_later, compile_package
from convert.mlc.package import write_package
from convert.pipeline import PROGRAM_BYTES, Progress, add_golden, open_journal, write_bundle
from convert.support.output_folder import OutputFolder
from convert.support.phases import Phases
from quantize.errors import BundleError

# The exported graph sums in another order than PyTorch does; both in float32.
ONNX_TOLERANCE = 1e-4  # of the output's largest magnitude


def make_bundle(
    config: ConvertConfig,
    checkpoint: Checkpoint,
    source: BundleSource,
    plan: Plan,
    output: OutputFolder,
    progress: Progress,
    phases: Phases,
    before_commit: Callable[[], None],
) -> dict[str, Any]:
    """Makes a bundle, or the rest of one that an earlier run left unfinished.

    `before_commit` is called when all is made: if it raises, the old bundle stays.
    """
    with output as folder:
        with phases.measure("calibrate"):
            calibrated = calibrate_weights(config, checkpoint, plan, progress)
        journal = open_journal(folder, source, plan, calibrated)
        output.resumable = journal.has_marks
        output.require_space(plan.nbytes + PROGRAM_BYTES * len(config.targets) - journal.nbytes)
        manifest = write_bundle(
            checkpoint,
            source,
            plan,
            config.targets,
            folder,
            progress,
            calibrated,
            journal=journal,
            phases=phases,
        )
        with phases.measure("golden answers"):
            manifest = add_golden(folder, manifest, progress)
        before_commit()
        journal.remove()
        with phases.measure("write to disk"):
            output.commit()
    return {
        "tensors": len(plan.tensors),
        "parameters": plan.parameters,
        "weights_bytes": plan.nbytes,
        "bits_per_weight": round(plan.bits_per_weight, 3),
        "kv_cache": describe_kv(plan.kv, checkpoint.config.decoder),
        "bundle_bytes": sum(record.size for record in manifest.files.values()),
        "programs": {name: record.program_id for name, record in manifest.targets.items()},
        "resumed_tensors": journal.kept_tensors,
    }


def export_onnx(
    checkpoint: Checkpoint, source: BundleSource, output: OutputFolder, progress: Progress
) -> dict[str, Any]:
    """Exports to ONNX; what onnxruntime makes of it must be what the reference says."""
    from convert.onnx.check import compare_onnx, sample_pixels
    from convert.onnx.export import MODEL, onnx_bytes, write_onnx
    from runtime.reference.load import VISION, load_reference

    config = checkpoint.config
    assert config.vision is not None, "checked before"
    output.require_space(onnx_bytes(config))
    with output as folder:
        report = write_onnx(checkpoint.read, config, source.sha256, folder, progress)
        progress("check ONNX", 0, 0)
        pixels = sample_pixels(config.vision)
        differences = compare_onnx(folder / MODEL, load_reference(checkpoint, only=VISION), pixels)
        for difference in differences:
            if not difference.relative <= ONNX_TOLERANCE:
                raise BundleError(
                    f"{output.path}: {difference.output} in onnxruntime is "
                    f"{difference.relative:.1e} of its scale away from the reference; at most "
                    f"{ONNX_TOLERANCE:.0e} is allowed"
                )
        progress("check ONNX", 1, 1)
        output.commit()
    return {
        "tensors": report.tensors,
        "parameters": report.parameters,
        "bytes": report.nbytes,
        "differences": {d.output: d.relative for d in differences},
    }


def make_package(
    checkpoint: Checkpoint,
    source: BundleSource,
    plan: Plan,
    calibrated: CalibratedWeights | None,
    output: OutputFolder,
    progress: Progress,
) -> dict[str, Any]:
    """Writes the decoder for MLC-LLM."""
    output.require_space(plan.nbytes)
    with output as folder:
        report = write_package(checkpoint, source, plan, folder, progress, calibrated)
        output.commit()
    return {
        "path": str(output.path),
        "parameters": report.parameters,
        "bytes": report.weights_bytes,
        "bits_per_weight": round(8 * report.weights_bytes / report.parameters, 3),
        "pictures": False,
    }


def compile_mlc(compiler: MlcCompiler | None, package: Path, python: str | None) -> dict[str, Any]:
    """Compiles a whole package where MLC-LLM is installed; says what to type where it is not."""
    if compiler is None:
        return {"library": None, "compile_with": command_for_later(package, python)}
    return {"library": str(compile_package(compiler, package)), "mlc_llm": compiler.version}
