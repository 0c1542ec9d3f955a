"""MLC-LLM's compiler: where it is found, and the commands that run it.

MLC-LLM is not part of this toolkit. Two ways lead to it. `--mlc-source` names a checkout of its
source, whose compiler runs with this environment's apache-tvm (`convert.mlc.launch`).
`--mlc-python` names the Python of an environment where MLC-LLM is installed, with a TVM of its own;
that one takes no pictures.

`doctor` looks for compilers, too, also where PyTorch or TVM are broken: nothing here imports them.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from convert.mlc.checkout import MlcCheckout
from convert.mlc.names import CHAT_CONFIG, PICTURE_MODEL, SCHEME, TEXT_MODEL
from quantize.errors import ConfigError

ABIS = ("0.27", "0.26")  # releases of apache-tvm whose runtimes a library may be for; ours first
_PROBE_SECONDS = 120  # it imports TVM
_PROBE = f"""
import importlib.util, json
if importlib.util.find_spec("mlc_llm") is None:
    print(json.dumps(None))
else:
    import mlc_llm
    from mlc_llm.model import MODELS
    version = getattr(mlc_llm, "__version__", "of unknown version")
    print(json.dumps({{"version": str(version), "model": {TEXT_MODEL!r} in MODELS}}))
"""


@dataclass(frozen=True)
class MlcDevice:
    """What a library is compiled for."""

    name: str  # as MLC-LLM calls it
    suffix: str  # of the library: an archive of objects for an app's build, or a shared library


DEVICES: Mapping[str, MlcDevice] = {
    "mlc-android": MlcDevice("android", ".tar"),  # OpenCL, with code for the phone's processor
    "mlc-opencl": MlcDevice("opencl", ".so"),  # this machine's GPU, or PoCL
    "mlc-host": MlcDevice("llvm", ".so"),  # this machine's processor; what `verify` runs
}


@dataclass(frozen=True)
class MlcCompiler:
    """An MLC-LLM that knows MiniCPM."""

    version: str
    command: tuple[str, ...]  # what comes before `compile`
    pictures: bool  # whether it knows the model with the vision encoder
    abi: str | None  # the release of apache-tvm whose runtime loads its libraries; None: its own
    checkout: Path | None = None

    def compile_command(self, target: str, package: Path, output: Path) -> list[str]:
        """Returns the command that compiles a package for a target."""
        config, device = str(package / CHAT_CONFIG), DEVICES[target].name
        return [*self.command, "compile", config, "--device", device, "-o", str(output)]


def installed(python: str, version: str) -> MlcCompiler:
    """Describes the MLC-LLM of an environment."""
    return MlcCompiler(version, (python, "-m", "mlc_llm"), pictures=False, abi=None)


def from_checkout(checkout: MlcCheckout, abi: str) -> MlcCompiler:
    """Describes the compiler of a checkout, run with this environment's apache-tvm."""
    launch = (sys.executable, "-m", "convert.mlc.launch", str(checkout.path), "--abi", abi, "--")
    return MlcCompiler(checkout.version, launch, pictures=True, abi=abi, checkout=checkout.path)


def library_name(target: str, *, pictures: bool) -> str:
    """Returns the name of the library in a package."""
    model = PICTURE_MODEL if pictures else TEXT_MODEL
    return f"{model}-{SCHEME}-{target.removeprefix('mlc-')}{DEVICES[target].suffix}"


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
        problem = last_line(done.stderr) or last or f"exit code {done.returncode}"
        raise ConfigError(f"{where}: mlc_llm is there but cannot be used: {problem}")
    if not found["model"]:
        raise ConfigError(
            f"{where}: mlc_llm {found['version']} does not know the model type {TEXT_MODEL}; "
            "install a newer one"
        )
    return installed(chosen, str(found["version"]))


def command_for_later(target: str, package: Path, python: str | None) -> str:
    """Returns what to type where MLC-LLM is installed."""
    library = package / library_name(target, pictures=False)
    return shlex.join(installed(python or "python", "").compile_command(target, package, library))


def last_line(text: str) -> str:
    """Returns the last line of a program's output that is not blank, at most 500 characters."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:500] if lines else ""
