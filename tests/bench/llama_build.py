"""Environments of their own with llama.cpp, built from source for this very processor."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from convert.support.cache import cache_folder
from quantize.errors import ToolkitError
from tests.bench.rounds import features

VERSION = "0.3.36"  # of llama-cpp-python, which carries llama.cpp's source
PACKAGES = (f"llama-cpp-python=={VERSION}", "gguf==0.19.0", "numpy")
# CMake's options, and what Linux calls the instructions that each stands for.
_INSTRUCTIONS = {
    "SSE42": {"sse4_2"},
    "AVX": {"avx"},
    "AVX2": {"avx2"},
    "BMI2": {"bmi2"},
    "FMA": {"fma"},
    "F16C": {"f16c"},
    "AVX_VNNI": {"avx_vnni"},
    "AVX512": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "AVX512_VBMI": {"avx512vbmi"},
    "AVX512_VNNI": {"avx512_vnni"},
    "AVX512_BF16": {"avx512_bf16"},
}
_AMX = ("AMX_TILE", "AMX_INT8", "AMX_BF16")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A way to build llama.cpp. Each repacks Q4_0 for the processor when it loads a file."""

    name: str
    cmake: str

    @property
    def command(self) -> str:
        """What a user would type."""
        packages = " ".join(PACKAGES)
        return f"CMAKE_ARGS='{self.cmake}' pip install --no-binary llama-cpp-python {packages}"


NATIVE = Variant(
    name="native",
    cmake="-DGGML_NATIVE=ON -DGGML_CPU_REPACK=ON -DCMAKE_BUILD_TYPE=Release",
)


def variants(flags: Collection[str]) -> tuple[Variant, ...]:
    """Lists the variants that differ on a processor with some features, as Linux names them.

    Where there is AMX, its kernels take the place of those for AVX512; on some machines they crash
    on the first prefill, on others they are slower.
    """
    if not any(flag.startswith("amx_") for flag in flags):
        return (NATIVE,)
    chosen = {name: needs <= set(flags) for name, needs in _INSTRUCTIONS.items()}
    chosen |= dict.fromkeys(_AMX, False)
    options = [f"-DGGML_{name}={'ON' if on else 'OFF'}" for name, on in chosen.items()]
    cmake = NATIVE.cmake.replace("-DGGML_NATIVE=ON", " ".join(["-DGGML_NATIVE=OFF", *options]))
    return NATIVE, Variant(name="amx-off", cmake=cmake)


def folder() -> Path:
    """Returns where all that belongs to llama.cpp is kept."""
    return cache_folder() / "llama.cpp" / VERSION


def python(variant: Variant = NATIVE) -> Path:
    """Returns an environment's Python; the first call builds it, 5 to 30 minutes on two cores.

    What was built for another processor, or otherwise, is built again.

    Raises:
        ToolkitError: pip failed; its last line says why.
    """
    home = folder() / f"venv-{variant.name}"
    marker, program = home / "complete", home / "bin" / "python"
    about = json.dumps({"cmake": variant.cmake, "processor": sorted(features())})
    if marker.is_file() and marker.read_text("utf-8") == about:
        return program
    shutil.rmtree(home, ignore_errors=True)  # what an interrupted run left
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    # pip's cache does not know CMake's options: it would give one variant for the other.
    command = [str(program), "-m", "pip", "install", "--no-cache-dir"]
    command += ["--no-binary", "llama-cpp-python", *PACKAGES]
    run_pip(command, os.environ | {"CMAKE_ARGS": variant.cmake})
    marker.write_text(about, "utf-8")
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
    download(PACKAGES[0], home, "--no-binary", "llama-cpp-python")
    archive = home / f"llama_cpp_python-{VERSION}.tar.gz"
    shutil.unpack_archive(archive, home, filter="data")
    archive.unlink()
    if not inside.is_dir():
        raise ToolkitError(f"{PACKAGES[0]}: its source has no vendor/llama.cpp")
    return inside


def download(package: str, folder: Path, *options: str) -> None:
    """Downloads a package's archive into a folder, without what it depends on.

    Raises:
        ToolkitError: pip failed.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", *options]
    run_pip([*command, "-d", str(folder), package], os.environ)


def run_pip(command: list[str], environment: os._Environ[str] | dict[str, str]) -> None:
    """Runs pip; its output goes to stderr as it comes.

    Raises:
        ToolkitError: it failed.
    """
    print(" ".join(command), file=sys.stderr)
    done = subprocess.run(command, env=environment, stdout=sys.stderr, check=False)
    if done.returncode:
        raise ToolkitError(f"pip failed with exit code {done.returncode}; see above")
