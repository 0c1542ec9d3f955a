"""Compiles and links C++, for any platform; keeps what it compiled in a cache.

The compiler is zig, unless a test gives another. zig brings the linker, libc++ and musl for every
platform. Each object is kept under a key made of all that it follows from, beside its hash: what
is missing, half-written or damaged is compiled again, the rest is linked as it is; what is not
used for long goes. The cache may be removed at any time.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import TracebackType

from convert.scratch import scratch_folder
from quantize.errors import ToolkitError

CACHE_VARIABLE = "MINICPMV_CACHE"
KEPT_SECONDS = 90 * 24 * 3600  # how long an object that nobody uses stays in the cache
PAGE_BYTES = 16384  # Android's larger page size; a multiple of every smaller one
# The oldest processors that a program starts on, in zig's words. Compiled blocks may want more.
BASELINE = {"x86_64": "x86_64_v2", "aarch64": "generic"}
_COMPILE = (
    *("-std=c++17", "-O2", "-g0", "-DNDEBUG", "-fPIE", "-fvisibility=hidden"),
    *("-ffunction-sections", "-fdata-sections"),
)
_LINK = ("-O2", "-static", "-pie", "-s", "-Wl,--gc-sections", f"-Wl,-z,max-page-size={PAGE_BYTES}")

Progress = Callable[[str, int, int], None]  # stage, done, in all


class BuildError(ToolkitError):
    """A program could not be built: a source does not compile, or something is not installed."""


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A folder of sources. Keys and programs know it by its name, wherever it lies."""

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
class Compiler:
    """How C++ is compiled and linked."""

    name: str
    version: str
    command: tuple[str, ...]
    library: Path | None = None  # what zig compiles its libraries from; others bring them compiled
    platform_flags: tuple[str, ...]
    compile_flags: tuple[str, ...]
    link_flags: tuple[str, ...]


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
            cache: where objects are kept; None takes the user's, see `cache_folder`.
            jobs: compilers at a time; None takes as many as this process may use processors.

        Raises:
            BuildError: an architecture that nobody here has tried.
        """
        self._compiler = compiler or _zig(triple)
        self._triple = triple
        self._cache = (cache or cache_folder()).absolute()
        self._home = self._cache / "zig"  # libc++, musl; where compilers run
        self._library_name = f"lib-{self._compiler.version}"
        self._jobs = jobs or _processors()
        self._scratch: Path | None = None  # inside the `with` block
        self._open = ExitStack()

    def __enter__(self) -> Toolchain:
        try:
            self._home.mkdir(parents=True, exist_ok=True)
            if self._compiler.library is not None:
                _point(self._home / self._library_name, self._compiler)
        except OSError as error:
            raise BuildError(
                f"{self._cache}: cannot be written: {error.strerror or error}; "
                f"{CACHE_VARIABLE} names another folder for compiled objects"
            ) from error
        self._scratch = self._open.enter_context(scratch_folder("zig-"))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def compile(self, unit: Unit, on_progress: Progress) -> list[Path]:
        """Returns the objects of a unit, in the order of its sources; compiles what is missing.

        Raises:
            BuildError: a source does not compile.
        """
        folder = self._cache / f"{unit.name}-{self._triple}"
        folder.mkdir(exist_ok=True)
        with _locked(folder), ThreadPoolExecutor(self._jobs) as pool:
            objects = [folder / self._object_name(unit, source) for source in unit.sources]
            missing = {s: o for s, o in zip(unit.sources, objects, strict=True) if not is_whole(o)}
            running = [pool.submit(self._compile, unit, s, o) for s, o in missing.items()]
            stage = f"{unit.name} for {self._triple}"
            try:
                for done, future in enumerate(as_completed(running)):
                    on_progress(stage, done, len(running))
                    future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            if running:
                on_progress(stage, len(running), len(running))
            _forget(folder, objects)
        return objects

    def link(self, objects: Sequence[Path], output: Path) -> None:
        """Links a static, stripped program; `output` appears whole or not at all.

        Raises:
            BuildError: a symbol is missing or defined twice.
        """
        output.parent.mkdir(parents=True, exist_ok=True)
        whole = output.with_name(f".{output.name}.partial-{os.getpid()}")
        try:
            inputs = [str(path.absolute()) for path in objects]
            flags = self._compiler.link_flags
            self._run(
                [*flags, "-o", str(whole.absolute()), *inputs], f"{output.name}: cannot be linked"
            )
            os.replace(whole, output)
        finally:
            whole.unlink(missing_ok=True)

    def compile_libraries(self) -> None:
        """Lets zig compile what programs link with, if it has not; else the first link does."""
        assert self._scratch is not None, "a toolchain works inside its `with` block"
        source = self._scratch / "empty.cc"
        source.write_text("int main() {}\n")
        flags = [*self._compiler.link_flags, "-o", str(source.with_suffix(""))]
        self._run([*flags, str(source)], "an empty program: cannot be built")

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
        # Messages and checks carry the names of sources: not those of this machine's folders.
        flags += [f"-ffile-prefix-map={tree.folder.absolute()}={tree.name}" for tree in unit.trees]
        whole = output.with_suffix(f".partial-{os.getpid()}")
        try:
            arguments = [*self._compiler.compile_flags, *flags, "-c", "-o", str(whole)]
            self._run(
                [*arguments, str(unit.trees[0].folder.absolute() / source)],
                f"{unit.name}: {source} does not compile for {self._triple}",
            )
            # The hash comes first: an object without its hash, or with another's, is not whole.
            _hash_file(output).write_text(_sha256(whole))
            os.replace(whole, output)
        finally:
            whole.unlink(missing_ok=True)

    def _run(self, arguments: Sequence[str], problem: str) -> None:
        assert self._scratch is not None, "a toolchain works inside its `with` block"
        environment = dict(os.environ)
        environment["ZIG_GLOBAL_CACHE_DIR"] = str(self._home)
        environment["ZIG_LOCAL_CACHE_DIR"] = str(self._scratch)
        if self._compiler.library is not None:
            # The keys under which zig keeps libc++ and musl have this name in them, as it is seen
            # from where zig runs: the same for every checkout, they are compiled once.
            environment["ZIG_LIB_DIR"] = self._library_name
        command = [*self._compiler.command, *self._compiler.platform_flags, *arguments]
        done = subprocess.run(
            command,
            cwd=self._home,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            errors = [line for line in lines if "error:" in line] or lines or ["no message"]
            raise BuildError(f"{problem}: {errors[0].strip()}")


def cache_folder() -> Path:
    """Returns where objects are kept: `$MINICPMV_CACHE`, or `minicpmv` in the user's cache."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minicpmv"


def _zig(triple: str) -> Compiler:
    architecture = triple.partition("-")[0]
    if architecture not in BASELINE:
        raise BuildError(
            f"{triple}: cannot be built for; known architectures: {', '.join(BASELINE)}"
        )
    found = importlib.util.find_spec("ziglang")
    if found is None or not found.submodule_search_locations:
        raise BuildError("the package ziglang is not installed; it compiles the engine")
    package = Path(found.submodule_search_locations[0]).resolve()
    return Compiler(
        name="zig",
        version=version("ziglang"),
        command=(str(package / "zig"), "c++"),
        library=package / "lib",
        platform_flags=("-target", triple, f"-mcpu={BASELINE[architecture]}"),
        compile_flags=_COMPILE,
        link_flags=_LINK,
    )


def _point(link: Path, compiler: Compiler) -> None:
    """Makes a symbolic link lead to a compiler's library, unless it leads to an equal one.

    zig compiles anew from files that are not the very same: whose library was first stays in use.
    """
    folder = compiler.library
    assert folder is not None
    installed = f"ziglang-{compiler.version}.dist-info"
    if not (link.is_dir() and (link.resolve().parents[1] / installed).is_dir()):
        new = link.with_name(f".{link.name}.{os.getpid()}")
        os.symlink(folder, new)
        os.replace(new, link)


def _find(include: str, trees: Sequence[Tree]) -> Path:
    tree, _, inside = include.partition("/")
    return next(t.folder for t in trees if t.name == tree).absolute() / inside


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_whole(path: Path) -> bool:
    """Tells whether an object is there and has the hash that was noted when it was made."""
    try:
        return _sha256(path) == _hash_file(path).read_text()
    except (OSError, ValueError):
        return False


def _forget(folder: Path, used: Sequence[Path]) -> None:
    """Removes what nobody has used for long, and marks what is used now."""
    for path in used:
        os.utime(path)
        os.utime(_hash_file(path))
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # without locks another process may be doing the same
            if path.stat().st_mtime < time.time() - KEPT_SECONDS:
                path.unlink()


def _hash_file(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lets one process at a time compile into a folder; another waits and finds it done."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # a file system without locks: the same work is done twice
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
