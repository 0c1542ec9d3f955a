"""`minicpmv verify`: compares a bundle with the full-precision model, stage by stage."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from convert.support.streams import print_json
from runtime.engine_client.options import (
    ADB,
    HDC,
    LOCAL,
    MLC,
    QEMU,
    add_engine_arguments,
    engine_options,
)

NAME = "verify"
HELP = "compare a bundle with the full-precision model, stage by stage"
EXAMPLES = (
    ("verify the demo's bundle on this PC", "minicpmv verify build/demo"),
    (
        "verify a phone's engine, and write a report",
        "minicpmv verify phone --engine qemu --report report",
    ),
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "bundle",
        type=Path,
        metavar="DIR",
        help="a bundle, made by convert; or its package for MLC-LLM",
    )
    add_engine_arguments(parser, (LOCAL, QEMU, ADB, HDC, MLC), default=LOCAL)
    add = parser.add_argument_group("comparison").add_argument
    add(
        "--reference",
        metavar="CHECKPOINT",
        help="the full-precision model (default: the checkpoint that the bundle was made from)",
    )
    add(
        "--force",
        action="store_true",
        help="accept a --reference that the bundle was not made from",
    )
    add(
        "--window",
        type=int,
        metavar="N",
        help="context window in tokens (default: 1024, of a model with slices 2048, of an MLC "
        "package its own)",
    )
    add(
        "--data",
        metavar="FILE.jsonl",
        type=Path,
        help="questions, one JSON object per line: question (or a list of turns), and optionally "
        "image (a path relative to the file) and answer (default: built-in questions)",
    )
    add("--skip-bad", action="store_true", help="skip invalid lines of --data")
    _add_reference_options(add)
    add = parser.add_argument_group("output").add_argument
    add(
        "--report",
        metavar="FOLDER",
        type=Path,
        help="write a report as a web page, with its data; a later run of the same command "
        "continues an interrupted one",
    )
    add(
        "--sensitivity",
        metavar="FILE.json",
        type=Path,
        help="measure which tensors cost most, and write a recipe for convert --quant that stores "
        "them in int8",
    )
    add("--card", action="store_true", help="write the figures into the README.md of DIR")
    add("--json", action="store_true", help="print the report as JSON")


def _add_reference_options(add: Callable[..., argparse.Action]) -> None:
    """Adds what saves runs of the full-precision model."""
    add(
        "--save-reference",
        metavar="FILE",
        type=Path,
        help="write the full-precision model's results to a file, to compare other bundles with",
    )
    add(
        "--reference-results",
        metavar="FILE",
        type=Path,
        help="read them from such a file instead of running that model",
    )
    add(
        "--no-noise-floor",
        action="store_true",
        help="do not run the full-precision model in the checkpoint's own 16 bits, too",
    )


def run(args: argparse.Namespace) -> int:
    """Verifies; returns 0 if all checks passed, 1 if one failed."""
    from convert.support.console import Bars, results
    from runtime.verify.report.folder import PAGE
    from runtime.verify.report.table import print_report
    from runtime.verify.verify import verify

    engine = engine_options(args)
    with Bars() as bars:
        report = verify(
            args.bundle,
            reference=args.reference,
            engine=engine.engine,
            threads=engine.threads,
            serial=engine.serial,
            cpu=engine.cpu,
            window=args.window,
            data=args.data,
            skip_bad=args.skip_bad,
            report=args.report,
            force=args.force,
            save_reference=args.save_reference,
            reference_results=args.reference_results,
            noise_floor=not args.no_noise_floor,
            card=args.card,
            sensitivity=args.sensitivity,
            progress=bars,
        )
    if args.json:
        print_json(report.to_json(), indent=1)
    else:
        print_report(report, results())
        if args.report is not None:
            results().print(f"report     {args.report / PAGE}", markup=False, soft_wrap=True)
    return 0 if report.passed else 1
