"""Compiles and links C++, for any platform; keeps what it compiled in a cache.

The compiler is zig, unless a test gives another. zig brings the linker, libc++ and musl for every
platform. Each object is stored under a key of everything that it depends on, together with its
hash: objects that are missing, incomplete or damaged are compiled again; those unused for long are
removed. zig's own cache does not verify its files, so it is deleted with the toolchain object.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import TracebackType

from convert.engine.object_cache import cached_objects
from convert.support.cache import (
    KEPT_SECONDS,
    cache_folder,
    hash_file,
    is_damaged,
    is_whole,
    keep,
    locked,
    mark_used,
    writing,
)
from convert.support.progress import Progress
from convert.support.scratch import scratch_folder
from convert.support.whole_file import whole_file
from quantize.errors import ToolkitError

PAGE_BYTES = 16384  # Android's larger page size; a multiple of every smaller one
# The oldest processors that a program starts on, in zig's words. Compiled blocks may want more.
BASELINE = {"x86_64": "x86_64_v2", "aarch64": "generic"}
_COMPILE = (
    *("-std=c++17", "-O2", "-g0", "-DNDEBUG", "-fPIC", "-fvisibility=hidden"),
    *("-ffunction-sections", "-fdata-sections"),
)
_LINK = (
    *("-O3", "-s", "--gc-sections", "--as-needed", "--build-id=none", "--image-base=0"),
    *("--eh-frame-hdr", "-znow", "--error-limit=0", "-z", f"max-page-size={PAGE_BYTES}"),
)
_LINK_PROGRAM = ("--entry", "_start", "-static", "-pie", "-z", "stack-size=16777216")
# It stays loaded: TVM keeps what only the end of the process frees.
_LINK_LIBRARY = ("-shared", "--no-undefined", "-z", "text", "-z", "nodelete")
_EMULATIONS = {"x86_64": "elf_x86_64", "aarch64": "aarch64linux"}  # the linker's words
_LIB = "lib"  # a path to zig's own sources, from where zig runs
_LOG = logging.getLogger(__name__)


class BuildError(ToolkitError):
    """A program could not be built: a source does not compile, or something is not installed."""


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A folder of sources. Keys and programs contain its name, not its path."""

    name: str
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Sources that are compiled in the same way."""

    name: str
    trees: tuple[Tree, ...]  # the first holds the sources
    sources: tuple[str, ...]  # relative to the first tree
    flags: tuple[str, ...]
    includes: tuple[str, ...]  # folders: a tree's name, then the way inside it
    foreign: tuple[str, ...] = ()  # likewise, of others' headers: no warnings for those
    content: str  # a hash or version of what the sources include


@dataclass(frozen=True, kw_only=True)
class Form:
    """What objects are linked into, and what zig builds for it.

    The files are in the order in which they are linked: before the objects, and behind them.
    """

    name: str
    sample: tuple[str, ...]  # flags with which zig makes an empty one, and so builds the files
    start: tuple[str, ...]
    libraries: tuple[str, ...]


PROGRAM = Form(
    name="program",
    sample=("-O2", "-static", "-pie", "-s"),
    start=("rcrt1.o",),
    libraries=(
        *("libc++abi.a", "libc++.a", "libunwind.a", "libc.a", "libzigc.a", "libcompiler_rt.a"),
    ),
)
# Its libc.so has only names: the library is linked with the one of the process that loads it.
LIBRARY = Form(
    name="library",
    sample=("-O2", "-shared", "-fPIC", "-s"),
    start=(),
    libraries=("libc++abi.a", "libc++.a", "libunwind.a", "libc.so", "libcompiler_rt.a"),
)


@dataclass(frozen=True, kw_only=True)
class Compiler:
    """How C++ is compiled and linked."""

    name: str
    version: str
    command: tuple[str, ...]
    linker: tuple[str, ...]
    library: Path | None = None  # sources of zig's libraries; other compilers bring theirs compiled
    platform_flags: tuple[str, ...]
    compile_flags: tuple[str, ...]
    link_flags: tuple[str, ...]  # of programs
    shared_flags: tuple[str, ...] = ()  # of shared libraries


class Toolchain:
    """A compiler for one platform; a context manager: it needs a folder for its own files."""

    def __init__(
        self,
        triple: str,
        *,
        compiler: Compiler | None = None,
        cache: Path | None = None,
        jobs: int | None = None,
    ) -> None:
        """Chooses a platform.

        Args:
            triple: zig's name of it, for example `aarch64-linux-musl`.
            compiler: None takes zig; another's platform may have any name.
            cache: where objects are kept; None takes the user's, see `convert.support.cache`.
            jobs: compilers at a time; None takes as many as this process may use processors.

        Raises:
            BuildError: the architecture is not in `BASELINE`.
        """
        self._compiler = compiler or _zig(triple)
        self._triple = triple
        self._cache = (cache or cache_folder()).absolute()
        self._jobs = jobs or _processors()
        self._scratch: Path | None = None  # inside the `with` block
        self._open = ExitStack()

    def __enter__(self) -> Toolchain:
        self._scratch = self._open.enter_context(scratch_folder("zig-"))
        if self._compiler.library is not None:
            (self._scratch / _LIB).symlink_to(self._compiler.library)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def compile(self, unit: Unit, progress: Progress) -> list[Path]:
        """Returns the objects of a unit, in the order of its sources; compiles what is missing.

        Raises:
            BuildError: a source does not compile.
        """
        folder = self._cache / f"{unit.name}-{self._triple}"
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with locked(folder), ThreadPoolExecutor(self._jobs) as pool:
            objects = [folder / self._object_name(unit, source) for source in unit.sources]
            missing = {s: o for s, o in zip(unit.sources, objects, strict=True) if not is_whole(o)}
            for path in filter(is_damaged, missing.values()):
                _LOG.warning("%s: damaged; compiled again", path)
            running = [pool.submit(self._compile, unit, s, o) for s, o in missing.items()]
            stage = f"{unit.name} for {self._triple}"
            try:
                for done, future in enumerate(as_completed(running)):
                    progress(stage, done, len(running))
                    future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            if running:
                progress(stage, len(running), len(running))
            _forget(folder, objects)
        return objects

    def link(self, objects: Sequence[Path], output: Path) -> None:
        """Links a static, stripped program; `output` appears whole or not at all.

        Raises:
            BuildError: a symbol is missing or defined twice.
        """
        self._link(PROGRAM, self._compiler.link_flags, objects, output)

    def link_library(self, objects: Sequence[Path], output: Path, exports: Sequence[str]) -> None:
        """Links a stripped shared library that exports only some functions; see `link`.

        Raises:
            BuildError: a symbol is missing or defined twice.
        """
        names = self._folder / "exports"
        names.write_text(f"{{ global: {' '.join(f'{n};' for n in exports)} local: *; }};\n")
        flags = ("-soname", output.name, "--version-script", str(names.absolute()))
        self._link(LIBRARY, (*self._compiler.shared_flags, *flags), objects, output)

    def _link(
        self, form: Form, flags: Sequence[str], objects: Sequence[Path], output: Path
    ) -> None:
        output.parent.mkdir(parents=True, exist_ok=True)
        start, libraries = self.compile_libraries(form)
        inputs = [str(path.absolute()) for path in (*start, *objects, *libraries)]
        with whole_file(output) as whole:
            self._run(
                [*self._compiler.linker, *flags, "-o", str(whole.absolute()), *inputs],
                f"{output.name}: cannot be linked",
            )

    def compile_libraries(self, form: Form = PROGRAM) -> tuple[list[Path], list[Path]]:
        """Returns what a form is linked with, before and after its objects.

        Raises:
            BuildError: zig cannot build it.
            CacheError: the cache cannot be written.
        """
        compiler = self._compiler
        if compiler.library is None:
            return [], []
        flags = [*compiler.platform_flags, *form.sample]
        about = {compiler.name: compiler.version, "flags": flags}
        home = self._cache / f"libraries-{self._triple}"
        folder = self._folder / f"libraries-{form.name}"
        with writing(home):
            home.mkdir(parents=True, exist_ok=True)
        with locked(home):
            cached_objects(about, folder, partial(self._build_libraries, form), home)
        return [folder / name for name in form.start], [folder / name for name in form.libraries]

    def _build_libraries(self, form: Form, folder: Path) -> None:
        """Has zig link an empty source, and takes the libraries for it from zig's cache."""
        source = self._folder / "empty.cc"
        source.write_text("int main() {}\n")
        compiler = self._compiler
        command = [*compiler.command, *compiler.platform_flags, *form.sample, "-v"]
        said = self._run(
            [*command, "-o", "empty", source.name], f"an empty {form.name}: cannot be built"
        )
        links = [line for line in said.splitlines() if line.startswith("ld.lld ")]
        found = [word for word in links[-1].split() if word.startswith("global/")] if links else []
        expected = [*form.start, *form.libraries]
        if [Path(word).name for word in found] != expected:
            raise BuildError(
                f"{compiler.name} {compiler.version} links with {' '.join(found) or 'nothing'}; "
                f"expected {' '.join(expected)}; `minicpmv doctor` says which zig it should be"
            )
        for word in found:
            shutil.copy(self._folder / word, folder)

    @property
    def _folder(self) -> Path:
        assert self._scratch is not None, "a toolchain works inside its `with` block"
        return self._scratch

    def _object_name(self, unit: Unit, source: str) -> str:
        compiler = self._compiler
        flags = [*compiler.platform_flags, *compiler.compile_flags, *unit.flags]
        about = {
            compiler.name: compiler.version,
            "flags": [*flags, *unit.includes, *unit.foreign],
            "content": unit.content,
            "source": source,
            "text": hashlib.sha256((unit.trees[0].folder / source).read_bytes()).hexdigest(),
        }
        key = hashlib.sha256(json.dumps(about).encode()).hexdigest()
        return f"{Path(source).stem}-{key[:32]}.o"

    def _compile(self, unit: Unit, source: str, output: Path) -> None:
        flags = [*unit.flags]
        flags += [f"-I{_find(include, unit.trees)}" for include in unit.includes]
        flags += [f"-isystem{_find(include, unit.trees)}" for include in unit.foreign]
        # Messages and assertions contain the names of sources, but no paths of this machine.
        flags += [f"-ffile-prefix-map={tree.folder.absolute()}={tree.name}" for tree in unit.trees]
        whole = output.with_suffix(f".partial-{os.getpid()}")
        compiler = self._compiler
        command = [*compiler.command, *compiler.platform_flags, *compiler.compile_flags, *flags]
        try:
            self._run(
                [*command, "-c", "-o", str(whole), str(unit.trees[0].folder.absolute() / source)],
                f"{unit.name}: {source} does not compile for {self._triple}",
            )
            with writing(output.parent):
                keep(whole, output)
        finally:
            whole.unlink(missing_ok=True)

    def _run(self, command: Sequence[str], problem: str) -> str:
        """Runs a compiler or a linker; returns what it wrote to stderr."""
        environment = dict(os.environ)
        if self._compiler.library is not None:
            # Relative to where zig runs, so that its output does not contain that path.
            environment |= {"ZIG_GLOBAL_CACHE_DIR": "global", "ZIG_LOCAL_CACHE_DIR": "local"}
            environment["ZIG_LIB_DIR"] = _LIB
        try:
            done = subprocess.run(
                command,
                cwd=self._folder,
                env=environment,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
        except OSError as error:
            raise BuildError(f"{problem}: {command[0]}: {error.strerror or error}") from error
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            errors = [line for line in lines if "error:" in line] or lines or ["no message"]
            raise BuildError(f"{problem}: {errors[0].strip()}")
        return done.stderr


def zig_package() -> Path:
    """Returns the folder of the package ziglang; the program in it is called `zig`.

    Raises:
        BuildError: it is not installed.
    """
    found = importlib.util.find_spec("ziglang")
    if found is None or not found.submodule_search_locations:
        raise BuildError("the package ziglang is not installed; it compiles the engine")
    return Path(found.submodule_search_locations[0]).resolve()


def _zig(triple: str) -> Compiler:
    architecture = triple.partition("-")[0]
    if architecture not in BASELINE:
        raise BuildError(
            f"{triple}: cannot be built for; known architectures: {', '.join(BASELINE)}"
        )
    package = zig_package()
    return Compiler(
        name="zig",
        version=version("ziglang"),
        command=(str(package / "zig"), "c++"),
        linker=(str(package / "zig"), "ld.lld", "-m", _EMULATIONS[architecture]),
        library=package / "lib",
        platform_flags=("-target", triple, f"-mcpu={BASELINE[architecture]}"),
        compile_flags=_COMPILE,
        link_flags=(*_LINK, *_LINK_PROGRAM),
        shared_flags=(*_LINK, *_LINK_LIBRARY),
    )


def _find(include: str, trees: Sequence[Tree]) -> Path:
    tree, _, inside = include.partition("/")
    return next(t.folder for t in trees if t.name == tree).absolute() / inside


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _forget(folder: Path, used: Sequence[Path]) -> None:
    """Removes objects unused for long, and marks those used now."""
    kept = {*used, *map(hash_file, used)}
    for path in kept:
        mark_used(path)
    for path in {*folder.iterdir()} - kept:
        with suppress(OSError):  # without locks another process may be doing the same
            if path.stat().st_mtime < time.time() - KEPT_SECONDS:
                path.unlink()
