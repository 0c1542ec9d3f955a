"""What `minicpmv apk` and `minicpmv aar` have in common: arguments, and how they print."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from android.build.tools import ToolError


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """Declares the bundle."""
    parser.add_argument(
        "bundle", metavar="DIR", type=Path, help="a bundle with an engine for android-arm64"
    )


def add_output(group: argparse._ArgumentGroup, kind: str, default: str) -> None:
    """Declares the file to write, of a kind such as APK."""
    group.add_argument(
        "-o",
        "--output",
        metavar=kind,
        type=Path,
        default=Path(default),
        help="file to write (default: %(default)s)",
    )


def add_abi(group: argparse._ArgumentGroup) -> None:
    """Declares the names of processors; see `abis`."""
    group.add_argument(
        "--abi", metavar="ABI,…", help="arm64-v8a, x86_64 (default: all that the bundle has)"
    )


def abis(names: str | None) -> tuple[str, ...] | None:
    """Returns the names that `--abi` lists, each once; None: all that the bundle supports."""
    if names is None:
        return None
    return tuple(dict.fromkeys(part.strip() for part in names.split(",")))


def check_output(output: Path, kind: str, example: str) -> None:
    """Raises ToolError if a folder has the name of the file to write."""
    if output.is_dir():
        raise ToolError(
            f"{output}: a folder; expected the name of an {kind}, such as {output / example}"
        )


def print_lines(lines: Mapping[str, str]) -> None:
    """Prints texts beside their names."""
    from convert.support.console import results

    width = max(map(len, lines))
    for name, text in lines.items():
        results().print(f"{name.ljust(width)}  {text}", markup=False, soft_wrap=True)
