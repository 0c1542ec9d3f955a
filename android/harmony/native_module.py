"""The module that ArkTS imports: our C++, linked with zig against a stub of HarmonyOS's Node-API.

No SDK of HarmonyOS is needed: the stub has the functions that `native/napi.h` declares, and nothing
of it is in the module but the name of the library that has them on the phone.
"""

from __future__ import annotations

import re
from pathlib import Path

from convert.engine.toolchain import Toolchain, Tree, Unit
from convert.engine.units import ENGINE
from convert.support.progress import Progress, silent
from convert.support.scratch import scratch_folder

NATIVE = Path(__file__).parent / "native"
MODULE = "libminicpmv.so"  # as ArkTS imports it; its name is `nm_modname` of module.cc
ENGINE_LIBRARY = "libminicpmv_engine.so"
NODE_API = "libace_napi.z.so"
REGISTRATION = "RegisterMinicpmvModule"
_SOURCES = ("connection.cc", "module.cc")
_FLAGS = ("-Wall", "-Wextra", "-Werror")


def build_module(triple: str, engine: Path, output: Path, progress: Progress = silent) -> None:
    """Links the module.

    Args:
        triple: zig's name of the platform.
        engine: the engine as a library, which the phone finds by its name.
        output: the file to write.
        progress: receives the files compiled.

    Raises:
        BuildError: something does not compile or link.
    """
    with Toolchain(triple) as toolchain, scratch_folder() as generated:
        stub = generated / NODE_API
        _link_stub(toolchain, stub, progress)
        objects = toolchain.compile(module_unit(), progress)
        toolchain.link_library([*objects, stub, engine], output, [REGISTRATION])


def module_unit() -> Unit:
    """Describes the module's C++."""
    headers = (*sorted(NATIVE.glob("*.h")), ENGINE / "engine_main.h")
    return Unit(
        name="harmony",
        trees=(Tree(name="harmony", folder=NATIVE),),
        sources=_SOURCES,
        flags=_FLAGS,
        includes=("harmony/../../..",),
        content="".join(path.read_text("utf-8") for path in headers),
    )


def node_api_functions() -> list[str]:
    """Lists the functions of Node-API that the module may use."""
    return re.findall(r"^\w+ (napi_\w+)\(", (NATIVE / "napi.h").read_text("utf-8"), re.M)


def _link_stub(toolchain: Toolchain, output: Path, progress: Progress) -> None:
    """Links a library with nothing in it but the functions' names."""
    names = node_api_functions()
    source = output.with_name("node_api_stub.cc")
    functions = "".join(
        f'extern "C" __attribute__((visibility("default"))) void {name}() {{}}\n' for name in names
    )
    source.write_text(functions)
    unit = Unit(
        name="harmony_stub",
        trees=(Tree(name="generated", folder=source.parent),),
        sources=(source.name,),
        flags=_FLAGS,
        includes=(),
        content="",
    )
    toolchain.link_library(toolchain.compile(unit, progress), output, names)
