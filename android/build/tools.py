"""Finds the programs and packages that build the APK; `tools.json` lists them with their hashes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from convert.support.cache import cache_folder, has_hash, pinned_file
from convert.support.scratch import scratch_folder
from quantize.errors import ToolkitError

AREAS = ("apk", "sideload", "qemu", "tests")  # the purposes of programs
# Copies artifacts from the repositories in the user's Maven settings.
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy"
_SHORT_RUN = (
    "-XX:+IgnoreUnrecognizedVMOptions",
    "-XX:TieredStopAtLevel=1",
    "-XX:+UseSerialGC",
)
_PROJECT = """\
<project xmlns="http://maven.apache.org/POM/4.0.0">
<modelVersion>4.0.0</modelVersion>
<groupId>minicpmv</groupId><artifactId>packages</artifactId><version>1</version>
<build><plugins><plugin>
<artifactId>maven-dependency-plugin</artifactId>
<configuration><artifactItems>
{items}
</artifactItems></configuration>
</plugin></plugins></build>
</project>
"""


class ToolError(ToolkitError):
    """A program is not installed, or it failed."""


@dataclass(frozen=True, kw_only=True)
class BuildTool:
    """A program, mostly from a Debian package."""

    name: str
    what: str  # what it does here; completes "it …"
    areas: tuple[str, ...]  # those of `AREAS` that need it
    debian: tuple[str, ...]  # packages; none for what Debian does not have
    ask: tuple[str, ...]  # arguments that print its version or usage
    answer: str  # a regular expression that the output matches; its group is the version
    oldest: str | None = None  # oldest version that works
    tried: str | None = None  # version that was tested
    origin: str | None = None  # where it is, if not in a package

    @property
    def is_there(self) -> bool:
        """Whether it is on the PATH; it may still not work."""
        return shutil.which(self.name) is not None

    @property
    def mend(self) -> str | None:
        """The command that installs it."""
        return install_command(self.debian) if self.debian else None


@dataclass(frozen=True, kw_only=True)
class MavenPackage:
    """A jar from Maven, pinned by its hash."""

    name: str  # in this toolkit
    what: str
    areas: tuple[str, ...]
    group: str
    artifact: str
    version: str
    sha256: str
    packaging: str = "jar"  # or "aar", an archive with a `classes.jar`

    @property
    def file_name(self) -> str:
        """The file name in Maven."""
        return f"{self.artifact}-{self.version}.{self.packaging}"

    def kept(self, folder: Path | None = None) -> Path:
        """Returns its path in the cache, whether or not it exists."""
        return (folder or cache_folder()) / "packages" / self.file_name

    def is_right(self, path: Path) -> bool:
        """Returns whether a file is this package, by its hash."""
        return has_hash(path, self.sha256)

    def fetch(self, folder: Path | None = None) -> Path:
        """Returns the package's file; as `fetch` of one."""
        return fetch([self], folder)[0]


def fetch(wanted: Sequence[MavenPackage], folder: Path | None = None) -> list[Path]:
    """Returns packages' files; one run of Maven downloads what the cache lacks or has damaged.

    Raises:
        ToolError: Maven could not download a package, or its file has another hash.
        CacheError: the cache cannot be written.
    """
    lacking = [package for package in wanted if not package.is_right(package.kept(folder))]
    if lacking:
        with scratch_folder() as scratch:
            _download(lacking, scratch)
            for package in lacking:
                found = scratch / package.file_name
                pinned_file(package.kept(folder), package.sha256, partial(_given, found))
    return [package.kept(folder) for package in wanted]


def _given(found: Path, _: Path) -> Path:
    return found


def programs(areas: Collection[str] = AREAS) -> list[BuildTool]:
    """Lists the programs that some areas need."""
    return [p for p in map(_program, _table()["programs"]) if set(p.areas) & set(areas)]


def packages(areas: Collection[str] = AREAS) -> list[MavenPackage]:
    """Lists the jars that some areas need."""
    return [p for p in map(package, _table()["packages"]) if set(p.areas) & set(areas)]


def package(name: str) -> MavenPackage:
    """Returns a package listed in `tools.json`."""
    return MavenPackage(**_entry("packages", name))


def program(name: str) -> str:
    """Returns the path of a program listed in `tools.json`.

    Raises:
        ToolError: it is not installed; the message names the Debian package.
    """
    entry = _program(name)
    found = shutil.which(name)
    if found is None:
        raise ToolError(
            f"{name} is not installed; it {entry.what}. Debian has it: {entry.mend}; "
            "`minicpmv doctor` lists all requirements"
        )
    return found


def java(name: str = "java") -> list[str]:
    """Returns how to start Java, or another of its programs, for a run of seconds.

    The quick compiler and collector alone take half the processor time. Not all Javas have them.

    Raises:
        ToolError: it is not installed.
    """
    prefix = "" if name == "java" else "-J"
    return [program(name), *(prefix + option for option in _SHORT_RUN)]


def install_command(debian: Sequence[str]) -> str:
    """Returns the command that installs Debian packages."""
    return f"sudo apt-get install {' '.join(debian)}"


def run(
    command: Sequence[str], problem: str, *, stdin: str | None = None, folder: Path | None = None
) -> str:
    """Runs a program and returns what it printed.

    Args:
        command: the program and its arguments.
        problem: begins the message if it fails.
        stdin: its input; None: empty.
        folder: where it runs; None: here.

    Raises:
        ToolError: it failed; the message has the first line of its output that mentions an error.
    """
    done = subprocess.run(
        command,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        errors="replace",
        cwd=folder,
        check=False,
    )
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if re.search("error|Exception", line, re.IGNORECASE)]
        first = (errors or lines or ["no message"])[0].strip()
        first = re.sub(r"^[\w.]+Exception: ", "", first)  # Java's class names do not help
        raise ToolError(f"{problem}: {Path(command[0]).name}: {first}")
    return done.stdout


def _download(wanted: Sequence[MavenPackage], folder: Path) -> None:
    """Lets Maven copy packages into a folder."""
    items = [
        f"<artifactItem><groupId>{p.group}</groupId><artifactId>{p.artifact}</artifactId>"
        f"<version>{p.version}</version><type>{p.packaging}</type></artifactItem>"
        for p in wanted
    ]
    project = folder / "pom.xml"
    project.write_text(_PROJECT.format(items="\n".join(items)), encoding="utf-8")
    names, them = wanted[0].file_name, "it"
    if len(wanted) > 1:
        names, them = f"{names} and {len(wanted) - 1} more", "them"
    run(
        [
            *(program("mvn"), "--batch-mode", "--quiet", f"--file={project}", _COPY),
            *(f"-DoutputDirectory={folder}", f"-Dmaven.repo.local={folder}/repository"),
        ],
        f"{names}: Maven could not download {them}; needed once, then in the cache",
    )
    for package in wanted:
        if not package.is_right(folder / package.file_name):
            raise ToolError(
                f"{package.file_name}: Maven's file does not have the SHA-256 {package.sha256}"
            )


def _program(name: str) -> BuildTool:
    return BuildTool(**_entry("programs", name))


def _entry(kind: str, name: str) -> dict[str, Any]:
    entry = dict(_table()[kind][name])
    entry["areas"] = entry.pop("for")
    lists = {key: tuple(value) for key, value in entry.items() if isinstance(value, list)}
    return {"name": name, **entry, **lists}


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads((Path(__file__).parent / "tools.json").read_text("utf-8"))
    return table
