"""An environment of its own with llama.cpp, built from source for this very processor."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from convert.cache import cache_folder
from quantize.errors import ToolkitError

VERSION = "0.3.36"  # of llama-cpp-python, which carries llama.cpp's source
PACKAGES = (f"llama-cpp-python=={VERSION}", "gguf==0.19.0", "numpy")
CMAKE_ARGS = "-DGGML_NATIVE=ON -DCMAKE_BUILD_TYPE=Release"
COMMAND = f"CMAKE_ARGS='{CMAKE_ARGS}' pip install --no-binary llama-cpp-python " + " ".join(
    PACKAGES
)


def folder() -> Path:
    """Returns where all that belongs to llama.cpp is kept."""
    return cache_folder() / "llama.cpp" / VERSION


def python() -> Path:
    """Returns the environment's Python; the first call builds it, 5 to 30 minutes on two cores.

    Raises:
        ToolkitError: pip failed; its last line says why.
    """
    home = folder() / "venv"
    marker, program = home / "complete", home / "bin" / "python"
    if marker.exists():
        return program
    shutil.rmtree(home, ignore_errors=True)  # what an interrupted run left
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    command = [str(program), "-m", "pip", "install", "--no-binary", "llama-cpp-python", *PACKAGES]
    run_pip(command, os.environ | {"CMAKE_ARGS": CMAKE_ARGS})
    marker.touch()
    return program


def source() -> Path:
    """Returns the folder with llama.cpp's source; the first call downloads it.

    Raises:
        ToolkitError: pip failed, or the package has no such folder.
    """
    home = folder() / "source"
    inside = home / f"llama_cpp_python-{VERSION}" / "vendor" / "llama.cpp"
    if inside.is_dir():
        return inside
    home.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--no-binary",
        "llama-cpp-python",
    ]
    run_pip([*command, "-d", str(home), PACKAGES[0]], os.environ)
    archive = home / f"llama_cpp_python-{VERSION}.tar.gz"
    shutil.unpack_archive(archive, home, filter="data")
    archive.unlink()
    if not inside.is_dir():
        raise ToolkitError(f"{PACKAGES[0]}: its source has no vendor/llama.cpp")
    return inside


def run_pip(command: list[str], environment: os._Environ[str] | dict[str, str]) -> None:
    """Runs pip; its output goes to stderr as it comes.

    Raises:
        ToolkitError: it failed.
    """
    print(" ".join(command), file=sys.stderr)
    done = subprocess.run(command, env=environment, stdout=sys.stderr, check=False)
    if done.returncode:
        raise ToolkitError(f"pip failed with exit code {done.returncode}; see above")
