"""`minicpmv convert`: from a checkpoint to a bundle, and to ONNX."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize.errors import BundleError

if TYPE_CHECKING:
    from rich.console import Console

    from convert.bundle import Source
    from convert.calibration_store import CalibratedWeights
    from convert.checkpoint import Checkpoint
    from convert.output_folder import OutputFolder
    from convert.pipeline import Progress
    from convert.plan import Plan

NAME = "convert"
HELP = "convert a checkpoint to 4-bit artifacts"
DEFAULT_TARGET, DEFAULT_RECIPE = "host", "q4f16_1"
# The exported graph sums in another order than PyTorch does; both in float32.
ONNX_TOLERANCE = 1e-4  # of the output's largest magnitude


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """What the user asked for, resolved."""

    checkpoint: str | None  # None: the demo
    bundle: Path | None  # None: no compiled target
    onnx: Path | None  # None: no ONNX
    targets: tuple[str, ...]  # compiled ones
    quant: str
    method: str | None = None  # None: the recipe's
    samples: Path | None = None  # for calibration; None: built-in ones
    skip_bad: bool = False

    def shown(self) -> dict[str, str]:
        """Names every setting as the user would."""
        shown = {"checkpoint": self.checkpoint or "demo"}
        if self.bundle is not None:
            shown |= {"bundle": str(self.bundle), "target": ", ".join(self.targets)}
            shown |= {"quantization": self.quant + (f", {self.method}" if self.method else "")}
        if self.onnx is not None:
            shown |= {"onnx": str(self.onnx)}
        return shown


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        nargs="?",
        help="a checkpoint's folder, or a Hugging Face id such as openbmb/MiniCPM-V "
        "(default: the demo checkpoint)",
    )
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="where to write")
    parser.add_argument(
        "--target",
        metavar="NAMES",
        default=DEFAULT_TARGET,
        help="what to make, separated by commas: a bundle with engines for `host`, this PC, "
        "`android-arm64`, phones, `android-x86_64`, emulators; and `onnx`, the vision encoder and "
        "resampler as ONNX, in DIR, or in DIR-onnx beside a bundle (default: %(default)s)",
    )
    parser.add_argument(
        "--quant",
        metavar="NAME",
        default=DEFAULT_RECIPE,
        help="quantization recipe, a file in configs/quant (default: %(default)s)",
    )
    parser.add_argument(
        "--method",
        metavar="NAME",
        help="how codes are found: `rtn`, plain rounding; `mse`, searched scales; `awq`, `gptq`, "
        "`awq+gptq`, calibrated (default: the recipe's)",
    )
    parser.add_argument(
        "--calibration",
        metavar="FILE.jsonl",
        type=Path,
        help="samples for calibration, one JSON object a line: question, and if there are image (a "
        "path beside the file) and answer (default: built-in ones)",
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out lines of --calibration that are bad"
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON on stdout")
    parser.add_argument("-v", "--verbose", action="store_true", help="show every tensor's plan")


def run(args: argparse.Namespace) -> int:
    """Converts and returns the exit code."""
    start = time.monotonic()
    from convert.checkpoint import Checkpoint
    from convert.console import Bars, messages, results
    from convert.measure import peak_rss_bytes

    config = _resolve(args)
    console = messages() if args.json else results()
    for key, value in config.shown().items():
        _say(console, key, value)
    # Every output is checked before the work begins.
    bundle, onnx = _outputs(config)
    checkpoint = Checkpoint.open(config.checkpoint)
    if onnx is not None and checkpoint.config.vision is None:
        raise BundleError(f"{checkpoint.path}: has no vision encoder; leave out --target onnx")
    summary: dict[str, Any] = {"config": config.shown()}
    plan = None
    if bundle is not None:
        plan = _plan(checkpoint, config)
        _print_plan(console, plan, verbose=args.verbose)
    with Bars() as bars:
        source = _source(checkpoint, config, bars)
        if bundle is not None and plan is not None:
            summary |= _convert(config, checkpoint, source, plan, bundle, bars)
        if onnx is not None:
            summary["onnx"] = _export(checkpoint, source, onnx, bars)
    summary |= {
        "seconds": round(time.monotonic() - start, 2),
        "peak_rss_bytes": peak_rss_bytes(),
    }
    if args.json:
        print(json.dumps(summary))
    else:
        _print_summary(console, summary)
    return 0


def _resolve(args: argparse.Namespace) -> ConvertConfig:
    from convert.pipeline import ONNX, parse_targets

    targets = parse_targets(args.target)
    compiled = tuple(target for target in targets if target != ONNX)
    output = Path(args.output)
    # `.` and `..` have no name to add to.
    named = output if output.name.strip(".") else output.resolve()
    beside = Path(f"{named}-{ONNX}") if compiled else output
    return ConvertConfig(
        checkpoint=args.checkpoint,
        bundle=output if compiled else None,
        onnx=beside if ONNX in targets else None,
        targets=compiled,
        quant=args.quant,
        method=args.method,
        samples=args.calibration,
        skip_bad=args.skip_bad,
    )


def _outputs(config: ConvertConfig) -> tuple[OutputFolder | None, OutputFolder | None]:
    from convert import bundle, onnx_export
    from convert.output_folder import OutputFolder

    return (
        OutputFolder(config.bundle, bundle.KIND) if config.bundle else None,
        OutputFolder(config.onnx, onnx_export.KIND) if config.onnx else None,
    )


def _plan(checkpoint: Checkpoint, config: ConvertConfig) -> Plan:
    from convert.plan import Recipe, make_plan

    recipe = Recipe.load(config.quant)
    if config.method is not None:
        recipe = recipe.with_method(config.method)
    return make_plan(checkpoint.config, checkpoint.untied_head, recipe)


def _calibrate(
    config: ConvertConfig, checkpoint: Checkpoint, plan: Plan, progress: Progress
) -> CalibratedWeights | None:
    """Calibrates if the recipe's method asks for it."""
    from convert.calibration import calibrate
    from convert.calibration_samples import default_samples, read_samples
    from convert.toolchain import cache_folder
    from quantize.methods import find_method

    if not find_method(plan.recipe.method).calibrated:
        return None
    pictures = checkpoint.config.vision is not None
    if config.samples is not None:
        samples = read_samples(config.samples, pictures=pictures, skip_bad=config.skip_bad)
    else:
        samples = default_samples(demo=config.checkpoint is None, pictures=pictures)
    return calibrate(checkpoint, plan, samples, cache_folder() / "calibration", progress)


def _source(checkpoint: Checkpoint, config: ConvertConfig, progress: Progress) -> Source:
    """Says where the weights come from, in a way that `verify` can find them again."""
    from convert.bundle import Source
    from convert.hub import is_hub_id

    if config.checkpoint is None:
        path = "demo"
    elif is_hub_id(config.checkpoint):
        path = config.checkpoint
    else:
        path = str(checkpoint.path.resolve())
    digest = checkpoint.source_hash(lambda done, total: progress("hash checkpoint", done, total))
    return Source(path=path, sha256=digest, demo=config.checkpoint is None)


def _convert(
    config: ConvertConfig,
    checkpoint: Checkpoint,
    source: Source,
    plan: Plan,
    output: OutputFolder,
    progress: Progress,
) -> dict[str, Any]:
    from convert.pipeline import PROGRAM_BYTES, add_golden, write_bundle

    output.require_space(plan.nbytes + PROGRAM_BYTES * len(config.targets))
    with output as folder:
        calibrated = _calibrate(config, checkpoint, plan, progress)
        manifest = write_bundle(
            checkpoint, source, plan, config.targets, folder, progress, calibrated
        )
        manifest = add_golden(folder, manifest, progress)
        output.commit()
    return {
        "tensors": len(plan.tensors),
        "parameters": plan.parameters,
        "weights_bytes": plan.nbytes,
        "bits_per_weight": round(plan.bits_per_weight, 3),
        "bundle_bytes": sum(record.size for record in manifest.files.values()),
        "programs": {name: record.program_id for name, record in manifest.targets.items()},
    }


def _export(
    checkpoint: Checkpoint, source: Source, output: OutputFolder, progress: Progress
) -> dict[str, Any]:
    """Exports to ONNX; what onnxruntime makes of it must be what the reference says."""
    from convert.onnx_export import MODEL, onnx_bytes, write_onnx
    from runtime.onnx_check import compare_onnx, sample_pixels
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


def _print_plan(console: Console, plan: Plan, *, verbose: bool) -> None:
    from convert.console import Size, print_table

    console.print()
    if verbose:
        header = ["tensor", "format", "shape", "size", "why"]
        rows = [[t.name, t.format, t.rule.shape, Size(t.nbytes), t.why] for t in plan.tensors]
        print_table(console, header, rows)
    else:
        header = ["part", "what", "tensors", "parameters", "format", "size"]
        rows = [
            [g.part, g.why, len(g.tensors), g.parameters, g.format, Size(g.nbytes)]
            for g in plan.groups()
        ]
        print_table(console, header, rows)
    console.print()


def _print_summary(console: Console, summary: dict[str, Any]) -> None:
    from convert.console import Size

    if "tensors" in summary:
        counts = f"{summary['tensors']:,} tensors, {summary['parameters']:,} parameters"
        bits = f"{summary['bits_per_weight']:.2f} bits per weight"
        _say(console, "weights", f"{counts}, {Size(summary['weights_bytes'])}, {bits}")
        _say(console, "bundle", Size(summary["bundle_bytes"]))
        for target, program_id in summary["programs"].items():
            _say(console, "program", f"{target}: {program_id}")
    if "onnx" in summary:
        onnx = summary["onnx"]
        worst = ", ".join(f"{name} {value:.1e}" for name, value in onnx["differences"].items())
        differs = f"largest difference from the reference, of its scale: {worst}"
        _say(console, "onnx", f"{Size(onnx['bytes'])}, {differs}")
    peak = Size(summary["peak_rss_bytes"])
    _say(console, "took", f"{summary['seconds']:.1f} s, peak memory {peak}")


def _say(console: Console, key: str, value: object) -> None:
    console.print(f"{key:14}{value}", markup=False, soft_wrap=True)
