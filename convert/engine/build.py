"""Builds the on-device engine: our C++, TVM's runtime, SentencePiece, compiled blocks, in one file.

The file is a static program that needs only a kernel to run on, or a shared library for processes
with musl. TVM's runtime comes from the sources in the installed wheels, SentencePiece from its
source distribution.
"""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.engine.toolchain import LIBRARY, PROGRAM, Form, Toolchain, Unit
from convert.engine.units import (
    ENGINE,
    MAIN,
    SENTENCEPIECE,
    engine_unit,
    sentencepiece_unit,
    tvm_units,
)
from convert.support.progress import Progress, silent
from convert.support.scratch import scratch_folder
from convert.support.versions import VERSION

ENTRY = "engine_main"  # the function that the library exports; see runtime/engine/engine_main.h

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BlockLibrary:
    """A model's blocks, compiled for one kind of processor."""

    prefix: str  # the system-library prefix that they were compiled with
    requires: tuple[str, ...]  # names of runtime/engine/cpu_features.cc
    objects: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class EngineReport:
    """An engine that was linked."""

    target: str
    program: Path
    program_bytes: int
    seconds: float


def build_engine(
    target: str,
    triple: str,
    libraries: Sequence[BlockLibrary],
    output: Path,
    program_id: str,
    progress: Progress = silent,
    *,
    form: Form = PROGRAM,
    main: Path = ENGINE / MAIN,
    jobs: int | None = None,
) -> EngineReport:
    """Links an engine, after compiling what the cache lacks.

    Args:
        target: the target's name, which the engine reports.
        triple: zig's name of the platform.
        libraries: the model's blocks; the engine takes the first that the processor can run.
        output: the file to write; a library is loaded by its name.
        program_id: identifies these blocks; a bundle's manifest names it.
        progress: receives the files compiled.
        form: a program, or a shared library.
        main: a program's source with `main`; tests pass their own.
        jobs: compilers at a time; None takes as many as this process may use processors.

    Raises:
        BuildError: something does not compile or link, or cannot be fetched.
    """
    started = time.monotonic()
    blocks = [path for library in libraries for path in library.objects]
    with (
        Toolchain(triple, jobs=jobs) as toolchain,
        SENTENCEPIECE.unpacked() as package,
        scratch_folder() as generated,
    ):
        (generated / "build_info.cc").write_text(build_info(target, program_id, libraries))
        units = [
            *_common_units(package, generated),
            engine_unit("build_info", generated, ["build_info.cc"], package),
        ]
        if form is PROGRAM:
            units.append(engine_unit("main", main.parent, [main.name], package))
        objects = [path for unit in units for path in toolchain.compile(unit, progress)]
        progress(f"link for {triple}", 0, 1)
        if form is LIBRARY:
            toolchain.link_library([*objects, *blocks], output, [ENTRY])
        else:
            toolchain.link([*objects, *blocks], output)
        progress(f"link for {triple}", 1, 1)
    return EngineReport(
        target=target,
        program=output,
        program_bytes=output.stat().st_size,
        seconds=time.monotonic() - started,
    )


def compile_parts(triple: str, progress: Progress) -> None:
    """Compiles into the cache what all engines for a platform share, zig's libraries included.

    Raises:
        BuildError: something does not compile, or cannot be fetched.
    """
    with (
        Toolchain(triple) as toolchain,
        SENTENCEPIECE.unpacked() as package,
        scratch_folder() as generated,
    ):
        main = engine_unit("main", ENGINE, [MAIN], package)
        for unit in (*_common_units(package, generated), main):
            toolchain.compile(unit, progress)
        progress(f"C++ library for {triple}", 0, 1)
        toolchain.compile_libraries()
        progress(f"C++ library for {triple}", 1, 1)


def build_info(target: str, program_id: str, libraries: Sequence[BlockLibrary]) -> str:
    """Returns the C++ that identifies an engine; see runtime/engine/build_info.h."""
    version = VERSION
    names = [target, program_id, version]
    rows = []
    for library in libraries:
        names += [library.prefix, *library.requires]
        rows.append(f'    {{"{library.prefix}", "{" ".join(library.requires)}"}},\n')
    for name in names:
        assert re.fullmatch(r"[\w.+-]+", name, re.ASCII), f"{name!r} cannot stand in C++"
    return (
        '#include "runtime/engine/build_info.h"\n\n'
        "namespace minicpmv {\n\n"
        f'const char kVersion[] = "{version}";\n'
        f'const char kTarget[] = "{target}";\n'
        f'const char kProgramId[] = "{program_id}";\n'
        f"const BlockLibrary kBlockLibraries[] = {{\n{''.join(rows)}"
        "    {nullptr, nullptr},\n};\n\n"
        "}  // namespace minicpmv\n"
    )


def _common_units(package: Path, generated: Path) -> list[Unit]:
    parts = sorted(path.name for path in ENGINE.glob("*.cc") if path.name != MAIN)
    parts += sorted(path.name for path in ENGINE.glob("*.S"))  # of one processor, or empty
    return [
        *tvm_units(generated),
        sentencepiece_unit(package, generated),
        engine_unit("engine", ENGINE, parts, package),
    ]


def export_objects(executable: Any, folder: Path) -> tuple[Path, ...]:
    """Writes a compiled Relax module as objects to link.

    Args:
        executable: of a module with the attribute `system_lib_prefix`.
        folder: gets the objects.
    """

    def keep(_: str, objects: Sequence[str], **__: object) -> None:
        for path in objects:
            shutil.copy(path, folder)

    keep.output_format = "tar"  # type: ignore[attr-defined]
    folder.mkdir(parents=True, exist_ok=True)
    executable.export_library("blocks.tar", fcompile=keep)
    return tuple(sorted(folder.glob("*.o")))
