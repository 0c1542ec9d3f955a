"""What an engine is compiled from: our C++, TVM's runtime, SentencePiece.

TVM's runtime comes from the sources in the installed wheels, SentencePiece from its source
distribution.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from convert.engine.source_package import SourcePackage
from convert.engine.toolchain import BuildError, Tree, Unit


def _sources(folder: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}.cc" for name in names)


ENGINE = Path(__file__).resolve().parents[2] / "runtime" / "engine"
MAIN = "main.cc"
SENTENCEPIECE = SourcePackage(
    name="sentencepiece",
    version="0.2.1",
    sha256="8138cec27c2f2282f4a34d9a016e3374cd40e5c6e9cb335063db66a0a3b71fad",
)
# What the engine uses of TVM: its function interface, JSON, the Relax VM, threads.
_TVM_FFI_SOURCES = _sources(
    "src/ffi",
    *("backtrace", "container", "custom_allocator", "dtype", "error", "function", "init_once"),
    *("object", "tensor", "extra/env_c_api", "extra/env_context", "extra/json_parser"),
    *("extra/json_writer", "extra/library_module", "extra/library_module_system_lib"),
    "extra/module",
)
_TVM_SOURCES = _sources(
    "src/runtime",
    *("cpu_device_api", "device_api", "logging", "module", "tensor"),
    *("workspace_pool", "memory/memory_manager", "vm/builtin", "vm/bytecode"),
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
_SENTENCEPIECE_SOURCES = _sources(
    "src",
    *("bpe_model", "char_model", "error", "filesystem", "model_factory", "model_interface"),
    *("normalizer", "sentencepiece_processor", "unigram_model", "util", "word_model"),
    *("builtin_pb/sentencepiece.pb", "builtin_pb/sentencepiece_model.pb"),
)
_PROTOBUF_SOURCES = (
    *_sources(
        "third_party/protobuf-lite",
        *("arena", "arenastring", "bytestream", "coded_stream", "common", "extension_set"),
        *("generated_enum_util", "generated_message_table_driven_lite", "generated_message_util"),
        *("implicit_weak_message", "int128", "message_lite", "parse_context", "repeated_field"),
        *("status", "statusor", "stringpiece", "stringprintf", "structurally_valid", "strutil"),
        *("time", "wire_format_lite", "zero_copy_stream", "zero_copy_stream_impl"),
        "zero_copy_stream_impl_lite",
    ),
    "third_party/absl/flags/flag.cc",
)
_PROTOBUF_BEGINS, _PROTOBUF_ENDS = "google/protobuf/port_def.inc", "google/protobuf/port_undef.inc"


def tvm_units(generated: Path) -> list[Unit]:
    """Lists TVM's runtime: whole, because its parts find each other by name when they run.

    `generated` gets sources that include TVM's.
    """
    tvm, tvm_ffi, engine = _package("tvm"), _package("tvm_ffi"), Tree(name="engine", folder=ENGINE)
    flags = (*_TVM_FLAGS, "-w")
    content = _tvm_content()
    made = Tree(name="generated", folder=generated)
    return [
        Unit(
            name="tvm_ffi",
            trees=(made, tvm_ffi),
            sources=_together("tvm_ffi", tvm_ffi, _TVM_FFI_SOURCES, generated),
            flags=flags,
            includes=(*_TVM_FFI_INCLUDES, "tvm_ffi"),
            content=version("apache-tvm-ffi"),
        ),
        Unit(
            name="tvm",
            trees=(made, tvm, tvm_ffi, engine),
            sources=_together("tvm", tvm, _TVM_SOURCES, generated),
            flags=flags,
            includes=(*_TVM_INCLUDES, "tvm/src/runtime", "tvm"),
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
    """Describes our C++ sources in a folder; `package` is SentencePiece's."""
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
    """Describes SentencePiece; writes the files that its own build generates to `generated`."""
    about = {"VERSION": SENTENCEPIECE.version, "PACKAGE": SENTENCEPIECE.name}
    about["PACKAGE_STRING"] = SENTENCEPIECE.name
    config = "".join(f"#define {name} {json.dumps(value)}\n" for name, value in about.items())
    (generated / "config.h").write_text(config)
    tree = Tree(name="sentencepiece", folder=package / "sentencepiece")
    return Unit(
        name="sentencepiece",
        trees=(Tree(name="generated", folder=generated), tree),
        sources=(
            *_together("sentencepiece", tree, _SENTENCEPIECE_SOURCES, generated),
            *_together("protobuf", tree, _PROTOBUF_SOURCES, generated),
        ),
        flags=("-DHAVE_PTHREAD=1", '-DINSTALL_DATADIR=""', "-w"),
        includes=(
            *("generated", "sentencepiece", "sentencepiece/src", "sentencepiece/src/builtin_pb"),
            *("sentencepiece/third_party", "sentencepiece/third_party/protobuf-lite"),
        ),
        content=SENTENCEPIECE.sha256 + config,
    )


def _together(name: str, tree: Tree, paths: Sequence[str], folder: Path) -> tuple[str, ...]:
    """Writes two sources that include the others' sources of a tree; returns their names.

    Headers take most of the compile time, and these sources never change: compiled one by one
    they take twice as long.
    """
    half = -(-len(paths) // 2)
    parts = {f"{name}_1.cc": paths[:half], f"{name}_2.cc": paths[half:]}
    for part, members in parts.items():
        lines = []
        for path in members:
            lines.append(f'#include "{path}"\n')
            text = (tree.folder / path).read_text("utf-8")
            if _PROTOBUF_BEGINS in text and _PROTOBUF_ENDS not in text:
                lines.append(f"#include <{_PROTOBUF_ENDS}>\n")
        (folder / part).write_text("".join(lines))
    return tuple(parts)


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
