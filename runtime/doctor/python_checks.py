"""Checks the Python packages that `pyproject.toml` lists: their versions, and that they load."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from convert.support.ask import ask
from convert.support.versions import TOOLKIT, package_version
from runtime.doctor.checks import BROKEN, MISSING, OLD, Finding, first_line

_IMPORT_SECONDS = 300.0
# Import names that differ from the package name.
_MODULES = {
    "apache-tvm": "tvm",
    "apache-tvm-ffi": "tvm_ffi",
    "import-linter": "importlinter",
    "markdown-it-py": "markdown_it",
    "pillow": "PIL",
    "pytest-xdist": "xdist",
    "pyyaml": "yaml",
}
_IMPORT = """
import importlib, json, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
        error = None
    except BaseException as caught:
        error = f"{type(caught).__name__}: {caught}"
    print(json.dumps([name, error]), flush=True)
"""


def check_python(areas: tuple[str, ...], test_areas: tuple[str, ...]) -> list[Finding]:
    """Checks the Python packages that pyproject.toml lists, by importing them.

    Args:
        areas: areas that need the toolkit's packages.
        test_areas: areas that need its tests' packages; empty: not checked.
    """
    try:
        listed = metadata.requires(TOOLKIT) or []
    except metadata.PackageNotFoundError:
        detail = "the toolkit is not installed in this Python"
        about = "this toolkit"
        return [
            Finding(
                name=TOOLKIT,
                what=about,
                areas=areas,
                state=MISSING,
                detail=detail,
                mend="make setup",
            )
        ]
    extras = ["", *_extras()] if test_areas else [""]
    asked = [
        _check_distribution(requirement, areas if _applies(requirement, [""]) else test_areas)
        for requirement in map(Requirement, listed)
        # An extra that includes others requires the toolkit itself; the others' are listed, too.
        if requirement.name != TOOLKIT and _applies(requirement, extras)
    ]
    broken = _imports([_module(f.name) for f in asked if not f.fails])
    return [_with_import(finding, broken.get(_module(finding.name))) for finding in asked]


def check_zig(areas: tuple[str, ...]) -> Finding:
    """Runs the engines' compiler, which a Python package provides."""
    output, problem = ask([sys.executable, "-m", "ziglang", "version"])
    version = re.search(r"^\d[\d.]+", output)
    about = Finding(name="zig", what="compiles and links engines", areas=areas)
    if problem or version is None:
        mend = f"{_pip()} --force-reinstall --no-deps {_spec('ziglang')}"
        detail = problem or f"its output: {first_line(output)}"
        return replace(about, state=BROKEN, detail=detail, mend=mend)
    return replace(about, version=version[0])


def _extras() -> list[str]:
    """Returns the names of pyproject.toml's optional groups."""
    return metadata.metadata(TOOLKIT).get_all("Provides-Extra") or []


def _applies(requirement: Requirement, extras: Sequence[str]) -> bool:
    """Tells whether a requirement holds on this machine, with one of these extras."""
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in extras)


def _check_distribution(requirement: Requirement, areas: tuple[str, ...]) -> Finding:
    """Compares what is installed with one line of pyproject.toml."""
    name, wanted = requirement.name, _spelled(requirement)
    found = Finding(name=name, what="Python package", areas=areas)
    mend = f"{_pip()} {shlex.quote(wanted)}"
    version = package_version(name, "")
    if not version:
        return replace(found, state=MISSING, detail=f"{wanted} is needed", mend=mend)
    found = replace(found, version=version)
    if not requirement.specifier.contains(version, prereleases=True):
        detail = f"is {version}; {wanted} is needed"
        return replace(found, state=OLD, detail=detail, mend=mend)
    return found


def _imports(modules: Sequence[str]) -> dict[str, str]:
    """Imports modules in separate processes; returns the errors by module."""
    left = list(modules)
    broken: dict[str, str] = {}
    while left:
        command = [sys.executable, "-c", _IMPORT, *left]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_IMPORT_SECONDS, check=False
            )
            output, end = done.stdout, f"ends Python with exit code {done.returncode}"
        except subprocess.TimeoutExpired as error:
            kept = error.stdout or b""
            output = kept.decode() if isinstance(kept, bytes) else kept
            end = f"takes longer than {_IMPORT_SECONDS:.0f} s"
        lines = [json.loads(line) for line in output.splitlines() if line.startswith('["')]
        broken |= {name: error for name, error in lines if error is not None}
        left = left[len(lines) :]
        if left:  # the next one ended the process
            broken[left.pop(0)] = end
    return broken


def _with_import(finding: Finding, error: str | None) -> Finding:
    if error is None or finding.fails:
        return finding
    mend = f"{_pip()} --force-reinstall --no-deps {_spec(finding.name)}"
    return replace(finding, state=BROKEN, detail=f"cannot be imported: {error}", mend=mend)


def _module(distribution: str) -> str:
    return _MODULES.get(distribution, distribution.replace("-", "_"))


def _pip() -> str:
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    return f"{python} -m pip install"


def _spec(name: str) -> str:
    """Returns a package's requirement in pyproject.toml, quoted for a shell."""
    wanted = canonicalize_name(name)
    listed = map(Requirement, metadata.requires(TOOLKIT) or [])
    found = (_spelled(each) for each in listed if canonicalize_name(each.name) == wanted)
    return shlex.quote(next(found, name))


def _spelled(requirement: Requirement) -> str:
    """Returns a requirement without its environment marker."""
    return str(requirement).partition(";")[0].strip()
