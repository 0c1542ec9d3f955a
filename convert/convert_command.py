"""`minicpmv convert`: from a checkpoint to a bundle, and to ONNX."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize.errors import BundleError, ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from convert.bundle import Source
    from convert.calibration_samples import Sample
    from convert.calibration_store import CalibratedWeights
    from convert.checkpoint import Checkpoint
    from convert.mlc_compile import MlcCompiler
    from convert.output_folder import OutputFolder
    from convert.pipeline import Progress
    from convert.plan import Plan, Recipe

NAME = "convert"
HELP = "convert a checkpoint to 4-bit artifacts"
DEFAULT_TARGET, DEFAULT_RECIPE, MLC_RECIPE = "host", "q4f16_1", "mlc"
SIZED_RECIPE = "small"  # whose method --target-size takes
# The exported graph sums in another order than PyTorch does; both in float32.
ONNX_TOLERANCE = 1e-4  # of the output's largest magnitude


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """What the user asked for, resolved."""

    checkpoint: str | None  # None: the demo
    bundle: Path | None  # None: no compiled target
    onnx: Path | None  # None: no ONNX
    targets: tuple[str, ...]  # compiled ones
    quant: str  # of the bundle
    mlc: Path | None = None  # None: no MLC package
    mlc_quant: str = MLC_RECIPE
    mlc_python: str | None = None  # where mlc_llm is; None: here
    method: str | None = None  # None: the recipe's
    target_size: str | None = None  # None: the recipe's formats
    samples: Path | None = None  # for calibration; None: built-in ones
    skip_bad: bool = False

    def shown(self) -> dict[str, str]:
        """Names every setting as the user would."""
        shown = {"checkpoint": self.checkpoint or "demo"}
        if self.bundle is not None:
            shown |= {"bundle": str(self.bundle), "target": ", ".join(self.targets)}
            more = [text for text in (self.method, self.target_size) if text]
            shown |= {"quantization": ", ".join([self.quant, *more])}
        if self.onnx is not None:
            shown |= {"onnx": str(self.onnx)}
        if self.mlc is not None:
            method = f", {self.method}" if self.method else ""
            shown |= {"mlc package": f"{self.mlc} ({self.mlc_quant}{method})"}
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
        "`android-arm64`, phones, `android-x86_64`, emulators; `onnx`, the vision encoder and "
        "resampler as ONNX; `mlc-android`, the decoder for MLC-LLM, the phone's GPU. Those two are "
        "in DIR, or beside a bundle in DIR-onnx and DIR-mlc-android (default: %(default)s)",
    )
    parser.add_argument(
        "--quant",
        metavar="NAME",
        help=f"quantization recipe, a file in configs/quant (default: {DEFAULT_RECIPE}; "
        f"{MLC_RECIPE} for mlc-android)",
    )
    parser.add_argument(
        "--method",
        metavar="NAME",
        help="how codes are found: `rtn`, plain rounding; `mse`, searched scales; `awq`, `gptq`, "
        "`awq+gptq`, calibrated (default: the recipe's)",
    )
    parser.add_argument(
        "--target-size",
        metavar="SIZE",
        help="size of a bundle's weights, such as 1.9GB: every part gets the format that loses "
        f"least within it, by measurement; number format and method are --quant's (default: "
        f"{SIZED_RECIPE})",
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
    parser.add_argument(
        "--mlc-python",
        metavar="PYTHON",
        help="the Python of the environment that has mlc_llm, for mlc-android (default: this one)",
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON on stdout")
    parser.add_argument("-v", "--verbose", action="store_true", help="show every tensor's plan")


def run(args: argparse.Namespace) -> int:
    """Converts and returns the exit code."""
    start = time.monotonic()
    from convert.checkpoint import Checkpoint
    from convert.console import Bars, messages, results
    from convert.measure import peak_rss_bytes
    from convert.mlc_compile import find_compiler
    from convert.mlc_package import make_mlc_plan
    from convert.plan import make_plan

    config = _resolve(args)
    console = messages() if args.json else results()
    for key, value in config.shown().items():
        _say(console, key, value)
    # Every output is checked before the work begins.
    if config.target_size is not None and config.bundle is None:
        raise ConfigError("--target-size is for bundles; choose a target such as host")
    bundle, onnx, mlc = _outputs(config)
    compiler = None if mlc is None else find_compiler(config.mlc_python)
    checkpoint = Checkpoint.open(config.checkpoint)
    if onnx is not None and checkpoint.config.vision is None:
        raise BundleError(f"{checkpoint.path}: has no vision encoder; leave out --target onnx")
    summary: dict[str, Any] = {"config": config.shown()}
    plan = None
    if bundle is not None:
        recipe = _recipe(config.quant, config)
        if config.target_size is not None:
            with Bars() as bars:
                recipe = _sized(config, checkpoint, recipe, bars)
        plan = make_plan(checkpoint.config, checkpoint.untied_head, recipe)
        _print_plan(console, plan, verbose=args.verbose)
    mlc_plan = None
    if mlc is not None:
        recipe = _recipe(config.mlc_quant, config)
        mlc_plan = make_mlc_plan(checkpoint.config, checkpoint.untied_head, recipe)
        _print_plan(console, mlc_plan, verbose=args.verbose)
    with Bars() as bars:
        source = _source(checkpoint, config, bars)
        if bundle is not None and plan is not None:
            summary |= _convert(config, checkpoint, source, plan, bundle, bars)
        if onnx is not None:
            summary["onnx"] = _export(checkpoint, source, onnx, bars)
        if mlc is not None and mlc_plan is not None:
            calibrated = _calibrate(config, checkpoint, mlc_plan, bars)
            summary["mlc"] = _package(checkpoint, source, mlc_plan, calibrated, mlc, bars)
            bars("mlc_llm compile", 0, 0)
            summary["mlc"] |= _compile(compiler, mlc.path, config.mlc_python)
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
    from convert.pipeline import MLC, ONNX, parse_targets

    targets = parse_targets(args.target)
    compiled = tuple(target for target in targets if target not in (ONNX, MLC))
    output = Path(args.output)
    # `.` and `..` have no name to add to.
    named = output if output.name.strip(".") else output.resolve()

    def place(target: str) -> Path | None:
        if target not in targets:
            return None
        return output if targets == (target,) else Path(f"{named}-{target}")

    return ConvertConfig(
        checkpoint=args.checkpoint,
        bundle=output if compiled else None,
        onnx=place(ONNX),
        mlc=place(MLC),
        targets=compiled,
        quant=args.quant or (SIZED_RECIPE if args.target_size else DEFAULT_RECIPE),
        mlc_quant=args.quant or MLC_RECIPE,
        mlc_python=args.mlc_python,
        method=args.method,
        target_size=args.target_size,
        samples=args.calibration,
        skip_bad=args.skip_bad,
    )


def _outputs(config: ConvertConfig) -> list[OutputFolder | None]:
    from convert import bundle, mlc_package, onnx_export
    from convert.output_folder import OutputFolder

    places = (
        (config.bundle, bundle.KIND),
        (config.onnx, onnx_export.KIND),
        (config.mlc, mlc_package.KIND),
    )
    return [OutputFolder(path, kind) if path else None for path, kind in places]


def _recipe(name: str, config: ConvertConfig) -> Recipe:
    from convert.plan import Recipe

    recipe = Recipe.load(name)
    return recipe if config.method is None else recipe.with_method(config.method)


def _sized(
    config: ConvertConfig, checkpoint: Checkpoint, base: Recipe, progress: Progress
) -> Recipe:
    """Chooses formats for `--target-size`."""
    from convert.target_size import choose_recipe, measure_losses, parse_size, smallest_size

    assert config.target_size is not None
    size = parse_size(config.target_size)
    smallest_size(checkpoint, base, size)  # found out before the work
    losses = measure_losses(checkpoint, base, _samples(config, checkpoint), progress)
    return choose_recipe(checkpoint, base, size, losses).recipe


def _calibrate(
    config: ConvertConfig, checkpoint: Checkpoint, plan: Plan, progress: Progress
) -> CalibratedWeights | None:
    """Calibrates if the recipe's method asks for it."""
    from convert.calibration import calibrate
    from convert.toolchain import cache_folder
    from quantize.methods import find_method

    if not find_method(plan.recipe.method).calibrated:
        return None
    samples = _samples(config, checkpoint)
    return calibrate(checkpoint, plan, samples, cache_folder() / "calibration", progress)


def _samples(config: ConvertConfig, checkpoint: Checkpoint) -> list[Sample]:
    """Returns what calibration and measurements show the model."""
    from convert.calibration_samples import default_samples, read_samples

    pictures = checkpoint.config.vision is not None
    if config.samples is not None:
        return read_samples(config.samples, pictures=pictures, skip_bad=config.skip_bad)
    return default_samples(demo=config.checkpoint is None, pictures=pictures)


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


def _package(
    checkpoint: Checkpoint,
    source: Source,
    plan: Plan,
    calibrated: CalibratedWeights | None,
    output: OutputFolder,
    progress: Progress,
) -> dict[str, Any]:
    """Writes the decoder for MLC-LLM."""
    from convert.mlc_package import write_package

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


def _compile(compiler: MlcCompiler | None, package: Path, python: str | None) -> dict[str, Any]:
    """Compiles a whole package where MLC-LLM is installed; says what to type where it is not."""
    from convert.mlc_compile import command_for_later, compile_package

    if compiler is None:
        return {"library": None, "compile_with": command_for_later(package, python)}
    return {"library": str(compile_package(compiler, package)), "mlc_llm": compiler.version}


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
    if "mlc" in summary:
        mlc = summary["mlc"]
        bits = f"{mlc['bits_per_weight']:.2f} bits per weight"
        _say(console, "mlc package", f"{Size(mlc['bytes'])}, {bits}; text only, without pictures")
        if mlc["library"] is None:
            how = f"mlc_llm is not installed here; to compile it: {mlc['compile_with']}"
        else:
            how = f"compiled by mlc_llm {mlc['mlc_llm']}: {mlc['library']}"
        _say(console, "mlc library", how)
    peak = Size(summary["peak_rss_bytes"])
    _say(console, "took", f"{summary['seconds']:.1f} s, peak memory {peak}")


def _say(console: Console, key: str, value: object) -> None:
    console.print(f"{key:14}{value}", markup=False, soft_wrap=True)
