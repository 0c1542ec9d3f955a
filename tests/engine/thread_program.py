"""The engine's pool of threads as a program of its own: `threads_main.cc`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from convert.engine.toolchain import Toolchain
from convert.engine.units import ENGINE, SENTENCEPIECE, engine_unit, tvm_units

_HERE = Path(__file__).parent


def build_threads(output: Path) -> None:
    """Builds it for this PC, reusing objects from the cache.

    Raises:
        BuildError: something does not compile or link, or cannot be fetched.
    """
    with (
        Toolchain("x86_64-linux-musl") as toolchain,
        SENTENCEPIECE.unpacked() as package,
        tempfile.TemporaryDirectory() as generated,
    ):
        units = [
            *tvm_units(Path(generated)),
            engine_unit("engine", ENGINE, ["thread_pool.cc"], package),
            engine_unit("threads", _HERE, ["threads_main.cc"], package),
        ]
        objects = [path for unit in units for path in toolchain.compile(unit, lambda *_: None)]
        toolchain.link(objects, output)
