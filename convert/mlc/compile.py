"""Compiles an MLC package with MLC-LLM, which is not part of this toolkit.

It comes from its own package index with a TVM of its own, so it usually lives in another
environment: `--mlc-python` names that one's Python.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from convert.engine.toolchain import BuildError
from convert.mlc.package import CHAT_CONFIG, SCHEME, add_file
from convert.support.scratch import scratch_folder
from convert.support.whole_file import whole_file
from quantize.errors import ConfigError

MODEL_TYPE = "minicpm"
LIBRARY = f"{MODEL_TYPE}-{SCHEME}-android.tar"
_PROBE_SECONDS = 120  # it imports TVM
_PROBE = f"""
import importlib.util, json
if importlib.util.find_spec("mlc_llm") is None:
    print(json.dumps(None))
else:
    import mlc_llm
    from mlc_llm.model import MODELS
    version = getattr(mlc_llm, "__version__", "of unknown version")
    print(json.dumps({{"version": str(version), "model": {MODEL_TYPE!r} in MODELS}}))
"""


@dataclass(frozen=True)
class MlcCompiler:
    """An MLC-LLM that knows MiniCPM."""

    python: str
    version: str


def find_compiler(python: str | None) -> MlcCompiler | None:
    """Looks for MLC-LLM in an environment; None where it is not installed.

    Args:
        python: that environment's Python; this one's by default.

    Raises:
        ConfigError: no such Python, an MLC-LLM that cannot be imported, or one that does not
            know MiniCPM.
    """
    chosen = python or sys.executable
    where = f"--mlc-python {chosen}" if python else chosen
    try:
        done = subprocess.run(
            [chosen, "-c", _PROBE],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except OSError as error:
        raise ConfigError(
            f"{where}: cannot be run: {error.strerror or error}; expected the Python of the "
            "environment that has mlc_llm"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"{where}: importing mlc_llm took over {_PROBE_SECONDS} s") from error
    last = done.stdout.strip().rpartition("\n")[2]
    try:
        found = json.loads(last) if done.returncode == 0 else ...
    except ValueError:
        found = ...
    if found is None:
        return None
    if not isinstance(found, dict) or set(found) != {"version", "model"}:
        problem = _last_line(done.stderr) or last or f"exit code {done.returncode}"
        raise ConfigError(f"{where}: mlc_llm is there but cannot be used: {problem}")
    if not found["model"]:
        raise ConfigError(
            f"{where}: mlc_llm {found['version']} does not know the model type {MODEL_TYPE}; "
            "install a newer one"
        )
    return MlcCompiler(chosen, str(found["version"]))


def compile_command(python: str, package: Path, output: Path) -> list[str]:
    """Returns the command that compiles a package for Android's GPUs."""
    config = str(package / CHAT_CONFIG)
    return [python, "-m", "mlc_llm", "compile", config, "--device", "android", "-o", str(output)]


def command_for_later(package: Path, python: str | None) -> str:
    """Returns what to type where MLC-LLM is installed."""
    return shlex.join(compile_command(python or "python", package, package / LIBRARY))


def compile_package(compiler: MlcCompiler, package: Path) -> Path:
    """Compiles a whole package and adds the library to it.

    Raises:
        BuildError: MLC-LLM failed; the package stays as it was.
    """
    with scratch_folder(".mlc-", package.parent) as folder:
        output = folder / LIBRARY
        command = compile_command(compiler.python, package, output)
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", check=False
            )
            problem = _last_line(done.stderr) or _last_line(done.stdout) or "no message"
            code = done.returncode
        except OSError as error:
            problem, code = str(error), -1
        if code == 0 and not (output.is_file() and output.stat().st_size):
            problem, code = "it wrote no library", -1
        if code:
            later = command_for_later(package, compiler.python)
            raise BuildError(
                f"mlc_llm {compiler.version} could not compile {package}: {problem}; the package "
                f"itself is whole. To see more: {later}"
            )
        library = package / LIBRARY
        with whole_file(library) as file:
            output.rename(file)
    add_file(package, library)
    return library


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:500] if lines else ""
