"""`minicpmv convert`: from a checkpoint to a bundle, and to ONNX."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from convert.commands import options as convert_options
from convert.commands.options import ConvertConfig
from convert.support.streams import print_json
from quantize.errors import BundleError

if TYPE_CHECKING:
    from convert.support.output_folder import OutputFolder

NAME = "convert"
HELP = "convert a checkpoint to 4-bit artifacts"

configure = convert_options.configure


def run(args: argparse.Namespace) -> int:
    """Converts and returns the exit code."""
    start = time.monotonic()
    from convert.bundle.plan import make_plan
    from convert.checkpoint.reader import Checkpoint
    from convert.commands.inputs import (
        calibrate_weights,
        describe_source,
        load_recipe,
        sized_recipe,
    )
    from convert.commands.outputs import compile_mlc, export_onnx, make_bundle, make_package
    from convert.commands.summary import print_plan, print_summary, say
    from convert.mlc.compile import find_compiler
    from convert.mlc.package import make_mlc_plan
    from convert.support.console import Bars, messages, results
    from convert.support.measure import peak_rss_bytes
    from convert.support.phases import Phases, processor_seconds

    phases = Phases()
    config = convert_options.resolve(args)
    console = messages() if args.json else results()
    for key, value in config.shown().items():
        say(console, key, value)
    # Every output is checked before the work begins.
    bundle, onnx, mlc = _outputs(config)
    compiler = None if mlc is None else find_compiler(config.mlc_python)
    with phases.measure("open checkpoint"):
        checkpoint = Checkpoint.open(config.checkpoint)
    if onnx is not None and checkpoint.config.vision is None:
        raise BundleError(f"{checkpoint.path}: has no vision encoder; leave out --target onnx")
    summary: dict[str, Any] = {"config": config.shown()}
    plan = None
    if bundle is not None:
        recipe = load_recipe(config.quant, config)
        if config.target_size is not None:
            with Bars() as bars, phases.measure("choose formats"):
                recipe = sized_recipe(config, checkpoint, recipe, bars)
        plan = make_plan(checkpoint.config, checkpoint.untied_head, recipe, config.kv)
        print_plan(console, plan, verbose=args.verbose)
    mlc_plan = None
    if mlc is not None:
        recipe = load_recipe(config.mlc_quant, config)
        mlc_plan = make_mlc_plan(checkpoint.config, checkpoint.untied_head, recipe)
        print_plan(console, mlc_plan, verbose=args.verbose)
    with Bars() as bars:
        with phases.measure("hash checkpoint"):
            source = describe_source(checkpoint, config, bars)

        def export() -> None:
            if onnx is not None:
                with phases.measure("export to ONNX"):
                    summary["onnx"] = export_onnx(checkpoint, source, onnx, bars)

        if bundle is None or plan is None:
            export()
        else:  # a graph that does not compute what it should is found before anything is replaced
            made = make_bundle(config, checkpoint, source, plan, bundle, bars, phases, export)
            summary |= made
        if mlc is not None and mlc_plan is not None:
            with phases.measure("package for MLC"):
                calibrated = calibrate_weights(config, checkpoint, mlc_plan, bars)
                summary["mlc"] = make_package(checkpoint, source, mlc_plan, calibrated, mlc, bars)
                bars("mlc_llm compile", 0, 0)
                summary["mlc"] |= compile_mlc(compiler, mlc.path, config.mlc_python)
    summary |= {
        "phases": phases.to_json(),
        "seconds": round(time.monotonic() - start, 2),
        "processor_seconds": round(processor_seconds(), 2),
        "peak_rss_bytes": peak_rss_bytes(),
    }
    if args.json:
        print_json(summary)
    else:
        print_summary(console, summary)
    return 0


def _outputs(config: ConvertConfig) -> list[OutputFolder | None]:
    from convert.bundle import manifest as bundle
    from convert.mlc import package as mlc_package
    from convert.onnx import export as onnx_export
    from convert.support.output_folder import OutputFolder

    places = (
        (config.bundle, bundle.KIND, config.resume),
        (config.onnx, onnx_export.KIND, False),
        (config.mlc, mlc_package.KIND, False),
    )
    return [
        OutputFolder(path, kind, resume=resume) if path else None for path, kind, resume in places
    ]
