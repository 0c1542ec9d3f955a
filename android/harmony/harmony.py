"""`minicpmv harmony`: writes a project for DevEco Studio, for HarmonyOS NEXT."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from android.build.options import abis, add_abi, add_bundle, print_lines
from convert.support.streams import print_json

NAME = "harmony"
HELP = "write an app for HarmonyOS NEXT, as a project for DevEco Studio"
EXAMPLES = (
    ("write the project; DevEco Studio signs and runs it", "minicpmv harmony phone -o project"),
    ("write it for emulators on x86-64, too", "minicpmv harmony phone --abi arm64-v8a,x86_64"),
)


@dataclass(frozen=True, kw_only=True)
class HarmonyConfig:
    """The parsed command line."""

    bundle: Path
    output: Path
    abi: tuple[str, ...] | None  # None: all that the bundle supports
    json: bool


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    add_bundle(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        type=Path,
        default=Path("harmony"),
        help="folder to write (default: %(default)s)",
    )
    output.add_argument("--json", action="store_true", help="print JSON")
    add_abi(parser.add_argument_group("content"))


def run(args: argparse.Namespace) -> int:
    """Writes the project and prints a summary."""
    from android.build.builder import plan_package
    from android.harmony.project import write_project
    from convert.bundle.manifest import WEIGHTS, Bundle
    from convert.support.console import Bars, Size

    config = _parse(args)
    plan = plan_package(Bundle.open(config.bundle), config.abi, embed=False)
    with Bars() as bars:
        report = write_project(plan, config.output, bars)
    weights = plan.bundle.path / WEIGHTS
    if config.json:
        summary = {"project": str(config.output), "files": report.files, "bytes": report.bytes}
        print_json({**summary, "abis": plan.abis, "weights": weights.stat().st_size}, indent=1)
        return 0
    push = f"minicpmv sideload {config.output} --bundle {plan.bundle.path}"
    print_lines(
        {
            "project": f"{config.output}, {report.files} files, {Size(report.bytes)}",
            "abi": ", ".join(plan.abis),
            "next": "open it in DevEco Studio 5 or later, sign it, run it",
            "weights": f"{Size(weights.stat().st_size)}, not in it: import them in the app, or",
            "": push,
        }
    )
    return 0


def _parse(args: argparse.Namespace) -> HarmonyConfig:
    values = {name: getattr(args, name) for name in HarmonyConfig.__dataclass_fields__}
    return HarmonyConfig(**values | {"abi": abis(args.abi)})
