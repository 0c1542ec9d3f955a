"""`minicpmv aar`: builds a library for other apps from a bundle."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from android.build.options import (
    abis,
    add_abi,
    add_bundle,
    add_output,
    check_output,
    print_lines,
)
from convert.support.streams import print_json

NAME = "aar"
HELP = "build a library with a bundle's engine for your own Android app"
EXAMPLES = (
    ("build the library", "minicpmv aar phone -o minicpmv.aar"),
    ("add it to a Maven repository, too", "minicpmv aar phone --maven repository"),
)


@dataclass(frozen=True, kw_only=True)
class AarConfig:
    """The parsed command line."""

    bundle: Path
    output: Path
    abi: tuple[str, ...] | None  # None: all that the bundle supports
    maven: Path | None
    json: bool


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    add_bundle(parser)
    output = parser.add_argument_group("output")
    add_output(output, "AAR", "minicpmv.aar")
    output.add_argument(
        "--maven",
        metavar="FOLDER",
        type=Path,
        help="a Maven repository that gets the library, its sources and their documentation",
    )
    output.add_argument("--json", action="store_true", help="print JSON")
    add_abi(parser.add_argument_group("content"))


def run(args: argparse.Namespace) -> int:
    """Builds the AAR and prints a summary."""
    from android.build.builder import plan_package
    from android.build.library import ARTIFACT, GROUP, build_aar, write_repository
    from convert.bundle.manifest import WEIGHTS, Bundle
    from convert.support.console import Bars, Size
    from convert.support.versions import VERSION

    config = _parse(args)
    check_output(config.output, "AAR", "minicpmv.aar")
    plan = plan_package(Bundle.open(config.bundle), config.abi, embed=False)
    with Bars() as bars:
        build_aar(plan, config.output, bars)
        if config.maven is not None:
            write_repository(config.output, config.maven, bars)
    weights = (plan.bundle.path / WEIGHTS).stat().st_size
    module = f"{GROUP}:{ARTIFACT}:{VERSION}"
    if config.json:
        summary = {"aar": str(config.output), "bytes": config.output.stat().st_size}
        maven = None if config.maven is None else str(config.maven)
        print_json(
            {**summary, "abis": plan.abis, "module": module, "maven": maven, "weights": weights},
            indent=1,
        )
        return 0
    lines = {
        "aar": f"{config.output}, {Size(config.output.stat().st_size)}",
        "abi": ", ".join(plan.abis),
        "weights": f"{Size(weights)}, not in it: a file of your app",
    }
    if config.maven is not None:
        lines["maven"] = f"{module} in {config.maven}"
    print_lines(lines)
    return 0


def _parse(args: argparse.Namespace) -> AarConfig:
    values = {name: getattr(args, name) for name in AarConfig.__dataclass_fields__}
    return AarConfig(**values | {"abi": abis(args.abi)})
