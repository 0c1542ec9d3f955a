"""The programs and packages that the APK is built with; `tools.json` has their names and hashes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from convert.toolchain import cache_folder
from quantize.errors import ToolkitError

# Copies one file of a package, by its coordinates, from wherever the user's settings of Maven say.
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy"


class ToolError(ToolkitError):
    """A program is not installed, or it failed."""


@dataclass(frozen=True, kw_only=True)
class MavenPackage:
    """A jar, pinned to the bit."""

    group: str
    name: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        """What Maven calls it."""
        return f"{self.name}-{self.version}.jar"

    def fetch(self, folder: Path | None = None) -> Path:
        """Returns the package's jar; Maven downloads it if the cache has no whole one.

        Raises:
            ToolError: Maven could not get it, or got another file.
        """
        kept = (folder or cache_folder()) / "packages" / self.file_name
        if kept.is_file() and _sha256(kept) == self.sha256:
            return kept
        with tempfile.TemporaryDirectory() as scratch:
            coordinates = f"{self.group}:{self.name}:{self.version}"
            run(
                [
                    *(program("mvn"), "--batch-mode", "--quiet", _COPY),
                    *(f"-Dartifact={coordinates}", f"-DoutputDirectory={scratch}"),
                    f"-Dmaven.repo.local={scratch}/repository",
                ],
                f"{self.file_name}: Maven could not download it; it is needed once, then the "
                "cache has it",
            )
            found = Path(scratch) / self.file_name
            if not found.is_file() or _sha256(found) != self.sha256:
                raise ToolError(
                    f"{self.file_name}: Maven did not bring the file with SHA-256 {self.sha256}"
                )
            kept.parent.mkdir(parents=True, exist_ok=True)
            whole = kept.with_name(f".{kept.name}.partial-{os.getpid()}")
            shutil.copyfile(found, whole)
            os.replace(whole, kept)
        return kept


def package(name: str) -> MavenPackage:
    """Returns a package that `tools.json` names."""
    return MavenPackage(name=name, **_table()["packages"][name])


def program(name: str) -> str:
    """Returns the path of a program that `tools.json` names.

    Raises:
        ToolError: it is not installed; says which Debian package has it.
    """
    entry = _table()["programs"][name]
    found = shutil.which(name)
    if found is None:
        raise ToolError(
            f"{name} is not installed; it {entry['what']}. Debian has it in the package "
            f"{entry['debian']}: sudo apt-get install {entry['debian']}"
        )
    return found


def framework() -> Path:
    """Returns Android's own resources.

    Raises:
        ToolError: they are not installed.
    """
    entry = _table()["files"]["framework"]
    path = Path(entry["path"])
    if not path.is_file():
        raise ToolError(
            f"{path}: missing; it holds {entry['what']}: sudo apt-get install {entry['debian']}"
        )
    return path


def debian_packages() -> list[str]:
    """Returns every Debian package that something of `tools.json` is in."""
    entries = [*_table()["programs"].values(), *_table()["files"].values()]
    return sorted({entry["debian"] for entry in entries})


def run(command: Sequence[str], problem: str, *, stdin: str | None = None) -> str:
    """Runs a program and returns what it printed.

    Args:
        command: the program and its arguments.
        problem: begins the message if it fails.
        stdin: what it reads; None lets it read nothing.

    Raises:
        ToolError: it ended with another code than 0; carries its first line that tells of an error.
    """
    done = subprocess.run(
        command,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()] or lines or ["no message"]
        raise ToolError(f"{problem}: {Path(command[0]).name}: {errors[0].strip()}")
    return done.stdout


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads((Path(__file__).parent / "tools.json").read_text("utf-8"))
    return table


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
