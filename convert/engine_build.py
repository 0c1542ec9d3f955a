"""Builds the on-device engine: our C++, TVM's runtime, SentencePiece, compiled blocks, in one file.

The file is a static program that needs nothing of the system that it runs on. TVM's runtime comes
from the sources in the installed wheels, SentencePiece from its source distribution.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from convert.source_package import SourcePackage
from convert.toolchain import BuildError, Progress, Toolchain, Tree, Unit

ENGINE = Path(__file__).resolve().parents[1] / "runtime" / "engine"
MAIN = "main.cc"
SENTENCEPIECE = SourcePackage(
    name="sentencepiece",
    version="0.2.1",
    sha256="8138cec27c2f2282f4a34d9a016e3374cd40e5c6e9cb335063db66a0a3b71fad",
)
# What the engine uses of TVM: its function interface, JSON, the Relax VM, threads.
_TVM_FFI_SOURCES = (
    *("backtrace", "container", "custom_allocator", "dtype", "error", "function", "init_once"),
    *("object", "tensor", "extra/env_c_api", "extra/env_context", "extra/json_parser"),
    *("extra/json_writer", "extra/library_module", "extra/library_module_system_lib"),
    "extra/module",
)
_TVM_SOURCES = (
    *("cpu_device_api", "device_api", "logging", "module", "tensor", "thread_pool"),
    *("threading_backend", "workspace_pool", "memory/memory_manager", "vm/builtin", "vm/bytecode"),
    *("vm/executable", "vm/vm"),
)
_TVM_FLAGS = (
    *("-DTVM_FFI_EXPORTS", "-DTVM_RUNTIME_EXPORTS", "-DTVM_FFI_CMAKE_LITTLE_ENDIAN=1"),
    *("-DTVM_FFI_USE_LIBBACKTRACE=0", "-DTVM_FFI_BACKTRACE_ON_SEGFAULT=0"),
)
_TVM_FFI_INCLUDES = ("tvm_ffi/include", "tvm_ffi/3rdparty/dlpack/include")
_TVM_INCLUDES = (
    *("tvm/include", *_TVM_FFI_INCLUDES),
    # Two levels, so that "../support/" and "../../support/" both find shims/support.
    *("engine/shims/include", "engine/shims/include/tvm"),
)
_SENTENCEPIECE_SOURCES = (
    *("bpe_model", "char_model", "error", "filesystem", "model_factory", "model_interface"),
    *("normalizer", "sentencepiece_processor", "unigram_model", "util", "word_model"),
    *("builtin_pb/sentencepiece.pb", "builtin_pb/sentencepiece_model.pb"),
)
_PROTOBUF_SOURCES = (
    *("arena", "arenastring", "bytestream", "coded_stream", "common", "extension_set"),
    *("generated_enum_util", "generated_message_table_driven_lite", "generated_message_util"),
    *("implicit_weak_message", "int128", "message_lite", "parse_context", "repeated_field"),
    *("status", "statusor", "stringpiece", "stringprintf", "structurally_valid", "strutil"),
    *("time", "wire_format_lite", "zero_copy_stream", "zero_copy_stream_impl"),
    "zero_copy_stream_impl_lite",
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BlockLibrary:
    """A model's blocks, compiled for one kind of processor."""

    prefix: str  # the system-library prefix that they were compiled with
    requires: tuple[str, ...]  # names of runtime/engine/cpu_features.cc
    objects: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class EngineReport:
    """What was made."""

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
    on_progress: Progress | None = None,
    *,
    main: Path = ENGINE / MAIN,
    jobs: int | None = None,
) -> EngineReport:
    """Links an engine; compiles first what the cache lacks of it.

    Args:
        target: the target's name, for the engine to say.
        triple: zig's name of the platform.
        libraries: the model's blocks; the engine takes the first that the processor can run.
        output: the program to write.
        program_id: what tells that a bundle belongs to these blocks.
        on_progress: hears of every file that is compiled.
        main: the source with `main`; tests give another.
        jobs: compilers at a time; None takes as many as this process may use processors.

    Raises:
        BuildError: something does not compile or link, or cannot be fetched.
    """
    report = on_progress or (lambda stage, done, total: log.debug("%s %d/%d", stage, done, total))
    started = time.monotonic()
    blocks = [path for library in libraries for path in library.objects]
    with (
        Toolchain(triple, jobs=jobs) as toolchain,
        SENTENCEPIECE.unpacked() as package,
        tempfile.TemporaryDirectory() as generated,
    ):
        (Path(generated) / "build_info.cc").write_text(build_info(target, program_id, libraries))
        parts = sorted(path.name for path in ENGINE.glob("*.cc") if path.name != MAIN)
        units = [
            *tvm_units(),
            sentencepiece_unit(package, Path(generated)),
            engine_unit("engine", ENGINE, parts, package),
            engine_unit("build_info", Path(generated), ["build_info.cc"], package),
            engine_unit("main", main.parent, [main.name], package),
        ]
        objects = [path for unit in units for path in toolchain.compile(unit, report)]
        report(f"link for {triple}", 0, 1)
        toolchain.link([*objects, *blocks], output)
        report(f"link for {triple}", 1, 1)
    return EngineReport(
        target=target,
        program=output,
        program_bytes=output.stat().st_size,
        seconds=time.monotonic() - started,
    )


def build_info(target: str, program_id: str, libraries: Sequence[BlockLibrary]) -> str:
    """Returns the C++ that tells an engine what it is; see runtime/engine/build_info.h."""
    names = [target, program_id, version("minicpmv")]
    rows = []
    for library in libraries:
        names += [library.prefix, *library.requires]
        rows.append(f'    {{"{library.prefix}", "{" ".join(library.requires)}"}},\n')
    for name in names:
        assert re.fullmatch(r"[\w.+-]+", name, re.ASCII), f"{name!r} cannot stand in C++"
    return (
        '#include "runtime/engine/build_info.h"\n\n'
        "namespace minicpmv {\n\n"
        f'const char kVersion[] = "{version("minicpmv")}";\n'
        f'const char kTarget[] = "{target}";\n'
        f'const char kProgramId[] = "{program_id}";\n'
        f"const BlockLibrary kBlockLibraries[] = {{\n{''.join(rows)}"
        "    {nullptr, nullptr},\n};\n\n"
        "}  // namespace minicpmv\n"
    )


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


def tvm_units() -> list[Unit]:
    """Lists TVM's runtime: whole, because its parts find each other by name when they run."""
    tvm, tvm_ffi, engine = _package("tvm"), _package("tvm_ffi"), Tree(name="engine", folder=ENGINE)
    flags = (*_TVM_FLAGS, "-w")
    content = _tvm_content()
    return [
        Unit(
            name="tvm_ffi",
            trees=(tvm_ffi,),
            sources=tuple(f"src/ffi/{name}.cc" for name in _TVM_FFI_SOURCES),
            flags=flags,
            includes=_TVM_FFI_INCLUDES,
            content=version("apache-tvm-ffi"),
        ),
        Unit(
            name="tvm",
            trees=(tvm, tvm_ffi, engine),
            sources=tuple(f"src/runtime/{name}.cc" for name in _TVM_SOURCES),
            flags=flags,
            includes=(*_TVM_INCLUDES, "tvm/src/runtime"),
            content=content,
        ),
        Unit(
            name="shims",
            trees=(engine, tvm, tvm_ffi),
            sources=("shims/no_files.cc",),
            flags=flags,
            includes=_TVM_INCLUDES,
            content=content,
        ),
    ]


def engine_unit(name: str, folder: Path, sources: Sequence[str], package: Path) -> Unit:
    """Describes C++ of ours in a folder; `package` is SentencePiece's."""
    trees = {name: folder, "engine": ENGINE, "sentencepiece": package / "sentencepiece"}
    return Unit(
        name=name,
        trees=(
            *(Tree(name=name, folder=folder) for name, folder in trees.items()),
            *(_package(name) for name in ("tvm", "tvm_ffi")),
        ),
        sources=tuple(sources),
        flags=("-Wall", "-Wextra", "-Werror", *_TVM_FLAGS),
        includes=("engine/../..",),
        foreign=(*_TVM_INCLUDES, "sentencepiece/src"),
        content=_content_hash([_tvm_content(), SENTENCEPIECE.sha256], [*ENGINE.glob("*.h")]),
    )


def sentencepiece_unit(package: Path, generated: Path) -> Unit:
    """Describes SentencePiece; writes into `generated` what its own build would make."""
    about = {"VERSION": SENTENCEPIECE.version, "PACKAGE": SENTENCEPIECE.name}
    about["PACKAGE_STRING"] = SENTENCEPIECE.name
    config = "".join(f"#define {name} {json.dumps(value)}\n" for name, value in about.items())
    (generated / "config.h").write_text(config)
    return Unit(
        name="sentencepiece",
        trees=(
            Tree(name="sentencepiece", folder=package / "sentencepiece"),
            Tree(name="generated", folder=generated),
        ),
        sources=(
            *(f"src/{name}.cc" for name in _SENTENCEPIECE_SOURCES),
            *(f"third_party/protobuf-lite/{name}.cc" for name in _PROTOBUF_SOURCES),
            "third_party/absl/flags/flag.cc",
        ),
        flags=("-DHAVE_PTHREAD=1", '-DINSTALL_DATADIR=""', "-w"),
        includes=(
            *("generated", "sentencepiece", "sentencepiece/src", "sentencepiece/src/builtin_pb"),
            *("sentencepiece/third_party", "sentencepiece/third_party/protobuf-lite"),
        ),
        content=SENTENCEPIECE.sha256 + config,
    )


def _package(name: str) -> Tree:
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise BuildError(f"the package {name} is not installed; the engine needs its sources")
    return Tree(name=name, folder=Path(found.submodule_search_locations[0]))


def _tvm_content() -> str:
    """Stands for the headers that TVM's runtime is compiled with."""
    return _content_hash(
        [version("apache-tvm"), version("apache-tvm-ffi")], [*(ENGINE / "shims").rglob("*.h")]
    )


def _content_hash(texts: Sequence[str], files: Sequence[Path]) -> str:
    """Hashes texts, and files by their names and contents."""
    parts = [*texts]
    for path in sorted(files):
        parts += [path.relative_to(ENGINE).as_posix(), path.read_text("utf-8")]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
