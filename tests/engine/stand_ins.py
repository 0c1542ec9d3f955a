"""Models in C++ of the engine's products, for blocks that are computed on any PC."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from convert.blocks.products import TileFunction
from convert.engine.toolchain import Toolchain, zig_package
from convert.engine.units import SENTENCEPIECE, engine_unit
from tests.support.needs import need_host_engine

TRIPLE = "x86_64-linux-musl"
_HERE = Path(__file__).parent


def load_stand_ins(folder: Path) -> None:
    """Compiles tile_model.cc in a folder and loads it into this process."""
    need_host_engine()
    library = folder / "model.so"
    with Toolchain(TRIPLE) as toolchain, SENTENCEPIECE.unpacked() as package:
        unit = engine_unit("model", _HERE, ["tile_model.cc"], package)
        link(toolchain.compile(unit, lambda *_: None), library, "-shared")
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


def stand_in(by: TileFunction | None) -> TileFunction:
    """Returns what stands for a function of the engine, once `load_stand_ins` has loaded it."""
    assert by is not None
    return replace(by, name=by.name.replace("minicpmv", "model"))


def link(objects: Sequence[Path], output: Path, *flags: str) -> None:
    """Links objects as they are, without zig's libraries."""
    linker = [str(zig_package() / "zig"), "ld.lld", *flags, "-o", str(output), *map(str, objects)]
    subprocess.run(linker, check=True)
