"""The engine as a shared library, and processes that load it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from convert.bundle.manifest import Bundle
from convert.bundle.targets import HOST, PHONE
from convert.engine.program import build_program
from convert.engine.toolchain import LIBRARY, Toolchain, Tree, Unit
from runtime.engine_client.client import NEWEST_CPU
from tests.support.musl import musl_loader
from tests.support.needs import need_qemu

NAME = "libminicpmv_engine.so"
ARCHITECTURES = {HOST: "x86_64", PHONE: "aarch64"}


@dataclass(frozen=True)
class Library:
    """A bundle's engine as a library, and how to start a process that loads it."""

    bundle: Path
    path: Path
    host: tuple[str, ...]

    def command(self, *arguments: object) -> list[str]:
        """Returns how to start the process; see library_host.cc for the arguments."""
        return [*self.host, str(self.path), *map(str, arguments)]


def build_library(bundle: Path, target: str, folder: Path) -> None:
    """Links a bundle's engine as a library, and a host for it.

    Skips where musl's loader is missing.
    """
    loader = musl_loader(ARCHITECTURES[target])
    opened = Bundle.open(bundle)
    identity = build_program(
        opened.config, opened.plan, target, folder / NAME, lambda *_: None, form=LIBRARY
    )
    assert identity == opened.manifest.targets[target].program_id
    _build_host(ARCHITECTURES[target], loader, folder / "host")


def built_library(bundle: Path, target: str, folder: Path) -> Library:
    """Describes what `build_library` wrote into a folder."""
    loader = musl_loader(ARCHITECTURES[target])
    emulated = (need_qemu(), "-cpu", NEWEST_CPU) if target == PHONE else ()
    return Library(bundle, folder / NAME, (*emulated, str(loader), str(folder / "host")))


def _build_host(architecture: str, loader: Path, output: Path) -> None:
    here = Path(__file__).resolve().parent
    unit = Unit(
        name="library_host",
        trees=(Tree(name="tests", folder=here),),
        sources=("library_host.cc",),
        flags=("-Wall", "-Wextra", "-Werror"),
        includes=(),
        content="",
    )
    with Toolchain(f"{architecture}-linux-musl") as toolchain:
        objects = toolchain.compile(unit, lambda *_: None)
        # A program with a loader, which the engine's own has not; what zig builds for libraries
        # is all that it needs.
        flags = ("--entry", "_start", "-pie", "--as-needed", "--dynamic-linker", str(loader))
        toolchain._link(LIBRARY, flags, objects, output)
