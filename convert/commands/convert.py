"""`minicpmv convert`: converts a checkpoint to a bundle, to ONNX, or to an MLC-LLM package."""

from __future__ import annotations

import argparse
import time

from convert.commands import options as convert_options
from convert.support.streams import print_json

NAME = "convert"
HELP = "convert a checkpoint to a bundle: quantized weights and an engine per target"
EXAMPLES = (
    ("convert the demo checkpoint for this PC", "minicpmv convert -o build/demo"),
    (
        "convert MiniCPM-V for this PC and for phones",
        "minicpmv convert openbmb/MiniCPM-V -o phone --target host,android-arm64",
    ),
)

configure = convert_options.configure


def run(args: argparse.Namespace) -> int:
    """Converts and returns the exit code."""
    started = time.monotonic()
    from convert.commands.summary import print_plan, print_summary, say
    from convert.pipeline import begin, make_products, settings, summarize
    from convert.support.console import Bars, messages, results

    config = convert_options.resolve(args)
    console = messages() if args.json else results()
    for key, value in settings(config).items():
        say(console, key, value)
    bars = Bars()
    conversion, products = begin(config, bars, started)
    for product in products:
        with bars:
            plan = product.plan(conversion)
        if plan is not None:
            print_plan(console, plan, verbose=args.verbose)
    for key, text in conversion.notes:
        say(console, key, text)
    with bars:
        make_products(conversion, products)
    summary = summarize(conversion, products)
    if args.json:
        print_json(summary.to_json())
    else:
        print_summary(console, summary)
    return 0
