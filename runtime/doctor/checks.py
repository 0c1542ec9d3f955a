"""Checks whether the toolkit's programs, packages and caches are present and work."""

from __future__ import annotations

import os
import re
import shutil
import webbrowser
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from android.build.tools import BuildTool, MavenPackage
from convert.bundle.targets import HOST_MACHINE, is_host, this_machine
from convert.engine.object_cache import LIST, read_entry
from convert.engine.units import SENTENCEPIECE
from convert.support.ask import ask
from convert.support.cache import CACHE_VARIABLE, cache_folder, has_hash, is_damaged, is_whole
from runtime.engine_client.emulator import (
    OLDEST_WITH_SME,
    emulator,
    emulator_version,
    kept_emulator,
)

OK, LATER, NOTE = "ok", "comes later", "note"  # nothing to repair
MISSING, OLD, BROKEN = "missing", "too old", "broken"
_DAMAGED = "the cached file is damaged and will be replaced"
_SME_TRIED = "10.0.13"
_CPU_FLAGS = ("avx2", "fma", "f16c")  # of the oldest processor that the host's engine runs on


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check."""

    name: str
    what: str  # it is or does
    areas: tuple[str, ...]  # that need it
    state: str = OK
    version: str | None = None
    tried: str | None = None  # version with which the toolkit was tested
    detail: str | None = None  # what is wrong
    mend: str | None = None  # the command that mends it

    @property
    def fails(self) -> bool:
        """Whether what needs it does not work."""
        return self.state in (MISSING, OLD, BROKEN)


def check_programs(programs: Sequence[BuildTool]) -> list[Finding]:
    """Runs programs to get their versions."""
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(_check_program, programs))


def check_package(package: MavenPackage) -> Finding:
    """Looks for a jar in the cache; a missing one is downloaded when needed."""
    path = package.kept()
    state, detail = OK, None
    if not package.is_right(path):
        damaged = _DAMAGED if path.is_file() else None
        state, detail = LATER, damaged or "downloaded when it is needed, or by `make android-tools`"
    return Finding(
        name=package.name,
        what=package.what,
        areas=package.areas,
        state=state,
        version=package.version,
        tried=package.version,
        detail=detail,
    )


def check_emulator(areas: tuple[str, ...]) -> Finding:
    """Looks for an emulator of Arm's matrix unit; the other processors need none so new."""
    found = Finding(name="emulator of SME", what="runs what phones since 2025 run", areas=areas)
    kept, program = kept_emulator(), emulator()
    version = emulator_version(program) if program is not None else ()
    found = replace(found, version=".".join(map(str, version)) or None, tried=_SME_TRIED)
    if version >= OLDEST_WITH_SME:
        return found
    fetched = "`python -m android.build.install_tools qemu` fetches it"
    detail = f"`--engine qemu` emulates phones without SME only; {fetched}"
    if is_damaged(kept):
        detail = f"{kept} is damaged; {fetched} again"
    return replace(found, state=NOTE, detail=detail)


def check_cache(areas: tuple[str, ...]) -> list[Finding]:
    """Measures the caches and looks for damage."""
    folder = cache_folder()
    objects = sorted(folder.glob("*/*.o"))
    entries = sorted(path.parent for path in folder.glob(f"*/*/{LIST}"))
    damaged = [path for path in objects if not is_whole(path)]
    damaged += [entry for entry in entries if read_entry(entry) is None]
    count = len(objects) + len(entries)
    name, what = "compiled objects", f"which engines are linked from, in {folder}"
    found = Finding(name=name, what=what, areas=areas, version=f"{count}, {_mib(_bytes(folder))}")
    writable = next((p for p in (folder, *folder.parents) if p.exists()), folder)
    if not os.access(writable, os.W_OK | os.X_OK) or not writable.is_dir():
        mend = f"export {CACHE_VARIABLE}=/another/folder"
        found = replace(found, state=BROKEN, detail=f"{writable} cannot be written", mend=mend)
    elif damaged:
        text = f"{len(damaged)} of {count} are damaged; they are compiled again when needed"
        found = replace(found, state=NOTE, detail=text)
    source = folder / "packages" / SENTENCEPIECE.file_name
    about = "SentencePiece's source, for engines"
    package = Finding(
        name="sentencepiece source", what=about, areas=areas, version=SENTENCEPIECE.version
    )
    if not source.is_file():
        detail = "downloaded by the first `minicpmv convert`"
        package = replace(package, state=LATER, detail=detail)
    elif not has_hash(source, SENTENCEPIECE.sha256):
        package = replace(package, state=LATER, detail=_DAMAGED)
    return [found, package, *_hub_cache()]


def check_machine(areas: tuple[str, ...]) -> list[Finding]:
    """Checks the processor and the browser."""
    system = " ".join(this_machine())
    host = Finding(
        name="processor", what="--engine local", areas=areas, version=f"{system}, {_cores()} cores"
    )
    advice = "bundles run with --engine qemu, adb or hdc only, checkpoints with --engine reference"
    if not is_host():
        detail = f"the engine for PCs is for {' '.join(HOST_MACHINE)}; {advice}"
        host = replace(host, state=NOTE, detail=detail)
    elif lacks := [flag for flag in _CPU_FLAGS if flag not in _cpu_flags()]:
        host = replace(host, state=NOTE, detail=f"lacks {', '.join(lacks)}; {advice}")
    browser = Finding(name="browser", what="shows `chat --web`", areas=areas)
    try:
        found = webbrowser.get()
        browser = replace(browser, version=getattr(found, "name", None))
    except webbrowser.Error:
        detail = "none is found; `chat --web` prints its address"
        browser = replace(browser, state=NOTE, detail=detail)
    return [host, browser]


def _check_program(program: BuildTool) -> Finding:
    found = Finding(name=program.name, what=program.what, areas=program.areas, tried=program.tried)
    path = shutil.which(program.name)
    if path is None:
        origin = f"; it is in {program.origin}" if program.origin else ""
        detail = f"not on the PATH{origin}"
        return replace(found, state=MISSING, detail=detail, mend=program.mend)
    output, problem = ask([path, *program.ask])
    match = re.search(program.answer, output, re.MULTILINE)
    if match is None:
        problem = problem or f"{path} does not say what it is: {first_line(output)}"
        mend = program.mend and program.mend.replace("install", "install --reinstall")
        return replace(found, state=BROKEN, detail=problem, mend=mend)
    version = match[1].strip(".") if match.re.groups else None
    found = replace(found, version=version)
    if version and program.oldest and numbers(version) < numbers(program.oldest):
        detail = f"{path} is {version}; {program.oldest} or later is needed"
        return replace(found, state=OLD, detail=detail, mend=program.mend)
    return found


def _hub_cache() -> list[Finding]:
    # The same rule as in huggingface_hub, which may not be installed.
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    home = os.environ.get("HF_HOME") or Path(caches) / "huggingface"
    folder = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")
    if not folder.is_dir():
        return []
    what = f"checkpoints from the Hugging Face hub, in {folder}"
    return [Finding(name="checkpoints", what=what, areas=(), version=_mib(_bytes(folder)))]


def numbers(version: str) -> tuple[int, ...]:
    """Returns a version's numbers, to be compared."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:4])


def first_line(text: str) -> str:
    """Returns the first line that is not blank."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "nothing")[:200]


def _bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink())


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:,.0f} MiB"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set(_CPU_FLAGS)  # unknown: assume that it has them
    match = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return set(match[1].split()) if match else set(_CPU_FLAGS)
