"""The module for HarmonyOS, and a process that loads it with a stand-in of HarmonyOS's Node-API."""

from __future__ import annotations

import shutil
from pathlib import Path

from android.build.builder import ROOT
from android.harmony.native_module import (
    MODULE,
    NODE_API,
    build_module,
    module_unit,
    node_api_functions,
)
from convert.engine.toolchain import Toolchain, Tree, Unit
from tests.engine.libraries import ARCHITECTURES, NAME, Library

_SOURCE = "node_api_stand_in.cc"
_ENTRY = "stand_in_main"  # that library_host.cc calls


def build_module_and_host(engine: Library, target: str, folder: Path) -> None:
    """Links a module for an engine, and the stand-in, beside copies of the engine and its host."""
    triple = f"{ARCHITECTURES[target]}-linux-musl"
    for name in (NAME, "host"):
        shutil.copy(engine.path.with_name(name), folder)
    build_module(triple, folder / NAME, folder / MODULE)
    unit = Unit(
        name="harmony_stand_in",
        trees=(Tree(name="tests", folder=Path(__file__).parent), Tree(name="android", folder=ROOT)),
        sources=(_SOURCE,),
        flags=("-Wall", "-Wextra", "-Werror"),
        includes=("android/..",),
        content=module_unit().content,
    )
    with Toolchain(triple) as toolchain:
        objects = toolchain.compile(unit, lambda *_: None)
        toolchain.link_library(objects, folder / NODE_API, [*node_api_functions(), _ENTRY])


def module_behind_host(engine: Library, folder: Path) -> Library:
    """Describes what `build_module_and_host` wrote; the stand-in takes the engine's place."""
    *loader, _ = engine.host
    host = (*loader, "--library-path", str(folder), str(folder / "host"))
    return Library(engine.bundle, folder / NODE_API, host)
