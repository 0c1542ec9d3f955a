"""Programs under AddressSanitizer and UndefinedBehaviorSanitizer, built with clang and glibc.

zig's musl cannot link sanitizers. TVM comes from the libraries of its wheels, and SentencePiece is
compiled without instrumentation: only this project's C++ is checked.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from convert.bundle.manifest import Bundle
from convert.bundle.targets import HOST, is_host
from convert.engine.build import build_info
from convert.engine.compile import Target, compile_blocks
from convert.engine.toolchain import BuildError, Compiler, Toolchain, Unit
from convert.engine.units import ENGINE, MAIN, SENTENCEPIECE, engine_unit, sentencepiece_unit
from convert.support.progress import Progress, silent

CLANG = "clang++"
FUZZERS = Path(__file__).resolve().parent / "fuzzers"
TARGETS = tuple(sorted(path.stem for path in FUZZERS.glob("*.cc")))
_PLATFORM = "x86_64-linux-gnu-sanitized"  # the platform's name in the cache
# vptr needs type information of TVM's classes, which its libraries do not export.
_SANITIZE = (
    *("-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all"),
    "-fno-omit-frame-pointer",
)
_COVERAGE = "-fsanitize=fuzzer-no-link"  # coverage feedback for libFuzzer, harmless elsewhere
_FUZZER = "-fsanitize=fuzzer"  # provides `main`


@dataclass(frozen=True)
class Sanitized:
    """The programs, and the bundle for them."""

    engine: Path
    fuzzers: dict[str, Path]
    bundle: Path


def clang() -> Compiler:
    """Describes Debian's clang.

    Raises:
        BuildError: it is not installed, or another platform.
    """
    if not is_host():
        raise BuildError("sanitizers are supported on Linux on x86-64 only")
    if shutil.which(CLANG) is None:
        raise BuildError(f"{CLANG} is not installed; Debian has it in the package clang")
    resources = Path(_said("-print-resource-dir"))
    for part in ("asan", "fuzzer"):
        if not list(resources.glob(f"lib/*/libclang_rt.{part}*.a")):
            raise BuildError(
                f"{CLANG} has no library for {part}; Debian has it in libclang-rt-*-dev"
            )
    return Compiler(
        name="clang",
        version=_said("--version"),
        command=(CLANG,),
        linker=(CLANG,),
        platform_flags=(),
        compile_flags=("-std=c++17", "-O1", "-gline-tables-only"),
        link_flags=(),
    )


def _said(option: str) -> str:
    """Returns the first line of clang's output."""
    done = subprocess.run([CLANG, option], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]


def link_sanitized(source: Path, output: Path) -> None:
    """Builds a program from one file, with all sanitizers."""
    with SENTENCEPIECE.unpacked() as package:
        unit = engine_unit("sanitized", source.parent, [source.name], package)
        _link(_compile([unit], _SANITIZE, lambda *_: None, None), (), output)


def build_sanitized(
    bundle: Path,
    output: Path,
    targets: Sequence[str] = TARGETS,
    progress: Progress = silent,
    *,
    jobs: int | None = None,
) -> Sanitized:
    """Builds the engine and fuzzers for a bundle, reusing objects from the cache.

    Args:
        bundle: one for this PC; its engine is the one that is built again.
        output: gets the programs.
        targets: names of the fuzzers.
        progress: hears of every file.
        jobs: compilers at a time; None takes as many as this process may use processors.

    Raises:
        BuildError: clang or its libraries are not installed, or something does not compile.
    """
    opened = Bundle.open(bundle)
    with tempfile.TemporaryDirectory() as scratch, SENTENCEPIECE.unpacked() as package:
        generated, blocks = Path(scratch) / "generated", Path(scratch) / "blocks"
        generated.mkdir()
        # Blocks are generated code, which is not checked: one level of CPU features is enough.
        host = Target.load(HOST)
        host = replace(host, variants=host.variants[-1:])
        compiled = compile_blocks(opened.config, opened.plan, host, blocks)
        info = build_info(HOST, opened.manifest.targets[HOST].program_id, compiled.libraries)
        (generated / "build_info.cc").write_text(info)
        parts = sorted(path.name for path in ENGINE.glob("*.cc") if path.name != MAIN)
        ours = [
            engine_unit("engine", ENGINE, parts, package),
            engine_unit("build_info", generated, ["build_info.cc"], package),
        ]
        checks = (*_SANITIZE, _COVERAGE)
        shared = _compile([sentencepiece_unit(package, generated)], (), progress, jobs)
        shared += _compile(ours, checks, progress, jobs)
        shared += [path for library in compiled.libraries for path in library.objects]
        main = engine_unit("main", ENGINE, [MAIN], package)
        engine = output / "engine"
        _link([*_compile([main], checks, progress, jobs), *shared], (), engine)
        fuzzers = {target: output / target for target in targets}
        for target, program in fuzzers.items():
            unit = engine_unit("fuzzers", FUZZERS, [f"{target}.cc"], package)
            _link([*_compile([unit], checks, progress, jobs), *shared], (_FUZZER,), program)
    return Sanitized(engine, fuzzers, bundle)


def _compile(
    units: Sequence[Unit], flags: Sequence[str], progress: Progress, jobs: int | None
) -> list[Path]:
    with Toolchain(_PLATFORM, compiler=clang(), jobs=jobs) as toolchain:
        return [
            path
            for unit in units
            for path in toolchain.compile(replace(unit, flags=(*unit.flags, *flags)), progress)
        ]


def _link(objects: Sequence[Path], flags: Sequence[str], output: Path) -> None:
    libraries = _tvm_libraries()
    places = tuple(f"-Wl,-rpath,{path.parent}" for path in libraries)
    compiler = replace(clang(), link_flags=(*_SANITIZE, *flags, "-pthread", *places))
    with Toolchain(_PLATFORM, compiler=compiler) as toolchain:
        toolchain.link([*objects, *libraries], output)


def _tvm_libraries() -> list[Path]:
    """Finds the TVM runtime that Python uses."""
    libraries = []
    for package, library in (("tvm", "libtvm_runtime.so"), ("tvm_ffi", "libtvm_ffi.so")):
        found = importlib.util.find_spec(package)
        if found is None or not found.submodule_search_locations:
            raise BuildError(f"the package {package} is not installed")
        libraries.append(Path(found.submodule_search_locations[0]) / "lib" / library)
    return libraries
