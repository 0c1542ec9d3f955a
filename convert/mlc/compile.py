"""Compiles an MLC package with MLC-LLM; see `convert.mlc.compilers`."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from pathlib import Path

from convert.engine.toolchain import BuildError
from convert.mlc.checkout import DRIFTED, TESTED_COMMITS
from convert.mlc.compilers import MlcCompiler, last_line, library_name
from convert.mlc.manifest import LibraryRecord, PackageManifest
from convert.support.scratch import scratch_folder
from convert.support.whole_file import whole_file

_ROOT = Path(__file__).resolve().parents[2]  # what the launcher is imported from
_PLANNED = re.compile(r"\[Memory usage\] Function `(\w+)`: (\d+\.\d+) MB")  # of 2**20 bytes
_FOR_SEVERAL = "batch_"  # functions for several conversations at once; an app has one


def compile_package(compiler: MlcCompiler, target: str, package: Path) -> LibraryRecord:
    """Compiles a whole package and adds the library to it.

    Returns:
        What the manifest says of the library.

    Raises:
        BuildError: MLC-LLM failed; the package stays as it was.
    """
    manifest = PackageManifest.read(package)
    name = library_name(target, pictures=manifest.pictures)
    with scratch_folder(".mlc-", package.parent) as folder:
        output = folder / name
        command = compiler.compile_command(target, package.absolute(), output.absolute())
        log = ""
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                cwd=folder,  # Python imports from where it is started: nobody's modules are here
                env=os.environ | {"PYTHONPATH": str(_ROOT)} if compiler.checkout else None,
            )
            problem = _problem(done)
            code, log = done.returncode, done.stdout + done.stderr
        except OSError as error:
            problem, code = str(error), -1
        if code == 0 and not (output.is_file() and output.stat().st_size):
            problem, code = "it wrote no library", -1
        if code:
            raise BuildError(_failure(compiler, package, command, problem, code))
        library = package / name
        with whole_file(library) as file:
            output.rename(file)
    record = LibraryRecord(
        file=name,
        mlc_llm=compiler.version,
        abi=compiler.abi,
        temporary_bytes=temporary_bytes(log),
    )
    manifest.with_library(target, library, record)
    return record


def temporary_bytes(log: str) -> int | None:
    """Adds up what MLC-LLM plans for each function that a conversation calls.

    TVM's pool keeps what a function has used for its next call, so these stand side by side.

    Args:
        log: of the compilation.

    Returns:
        Bytes; None if the log says nothing.
    """
    planned = [
        float(size) for name, size in _PLANNED.findall(log) if not name.startswith(_FOR_SEVERAL)
    ]
    return round(sum(planned) * 2**20) if planned else None


def _problem(done: subprocess.CompletedProcess[str]) -> str:
    """Says why MLC-LLM failed, if it did."""
    if done.returncode == -signal.SIGKILL:
        return "killed, perhaps for want of memory"
    if done.returncode < 0:
        return f"ended by signal {-done.returncode}"
    return last_line(done.stderr) or last_line(done.stdout) or "no message"


def _failure(
    compiler: MlcCompiler, package: Path, command: list[str], problem: str, code: int
) -> str:
    message = f"mlc_llm {compiler.version} could not compile {package}: {problem}; "
    message += "the package itself is whole. "
    if code == DRIFTED:
        return (
            f"{message}This commit does not fit this apache-tvm; to take one that was tried: "
            f"git -C {compiler.checkout} checkout {TESTED_COMMITS[0]}"
        )
    return f"{message}To see more: {shlex.join(command)}"
