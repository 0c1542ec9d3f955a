"""Installs the tools for building the app, for sideloading and for tests.

`make android-tools` and the test set-up run it (`python -m android.build.install_tools`). Programs
come from Debian, if this user may install packages, and jars from Maven Central; `tools.json` lists
them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from android.build.bochs import fetch_bochs, lacks_bochs
from android.build.emulator import fetch_emulator, lacks_emulator
from android.build.tools import (
    AREAS,
    ToolError,
    fetch,
    install_command,
    packages,
    programs,
)
from quantize.errors import ToolkitError


def install(areas: Sequence[str]) -> None:
    """Installs the missing programs and packages of some areas.

    Raises:
        ToolError: this user may not install packages (the message lists the missing ones), or a
            download failed.
    """
    _install_debian(areas)
    wanted = packages(areas)
    for package in wanted:
        if not package.kept().is_file():
            _say(f"Downloading {package.file_name}: {package.what}")
    fetch(wanted)
    if "qemu" in areas and lacks_emulator():
        _say("Downloading an emulator of Arm's matrix unit (SME)")
        _go_on_without(fetch_emulator, "Other phones are emulated")
    if "tests" in areas and lacks_bochs():
        _say("Downloading an emulator of x86's matrix unit (AMX)")
        _go_on_without(fetch_bochs, "A test of AMX skips")


def _go_on_without(fetch_it: Callable[[], Path], consequence: str) -> None:
    """Fetches an emulator of a matrix unit, which nothing else needs."""
    try:
        fetch_it()
    except ToolError as error:
        _say(f"{error}. {consequence}")


def _install_debian(areas: Sequence[str]) -> None:
    missing = [program for program in programs(areas) if not program.is_there]
    if not missing:
        return
    debian = list(dict.fromkeys(name for program in missing for name in program.debian))
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        names = ", ".join(program.name for program in missing)
        raise ToolError(f"missing: {names}. Install: {install_command(debian)}")
    _say(f"Installing from Debian: {' '.join(debian)}")
    quiet = ["-qq", "-y", "--no-install-recommends"]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update", "-qq"], ["apt-get", "install", *quiet, *debian]):
        done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)
        if done.returncode:
            raise ToolError(f"`{' '.join(command)}` failed with exit code {done.returncode}")
    still = [program.name for program in missing if not program.is_there]
    if still:
        raise ToolError(f"installed {' '.join(debian)}, but still missing: {', '.join(still)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 2 if something is still missing."""
    parser = argparse.ArgumentParser(
        prog="python -m android.build.install_tools", description=__doc__
    )
    parser.add_argument("areas", nargs="+", choices=AREAS, metavar="AREA", help=", ".join(AREAS))
    try:
        install(parser.parse_args(argv).areas)
    except (ToolkitError, OSError) as error:
        _say(str(error))
        return 2
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
