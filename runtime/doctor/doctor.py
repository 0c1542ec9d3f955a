"""What `minicpmv doctor` checks for which commands, and its conclusion."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from android.build import tools
from android.build.phones import misfit
from convert.bundle.targets import ABIS
from quantize.errors import ToolkitError
from runtime.doctor import checks, python_checks
from runtime.doctor.checks import BROKEN, MISSING, NOTE, OK, Finding
from runtime.doctor.mlc_checks import check_mlc
from runtime.engine_client import adb, hdc
from runtime.engine_client.phone_shell import PhoneError, PhoneInfo, PhoneShell

# The areas that a user may name, and the commands and options that each covers.
AREAS = {
    "convert": "convert, synth",
    "chat": "chat, verify, bench, info",
    "apk": "apk",
    "sideload": "sideload, --engine adb",
    "hdc": "--engine hdc, sideload to HarmonyOS",
    "qemu": "--engine qemu",
    "mlc": "--target mlc-…",
    "tests": "make test",
}
COMMANDS = {
    "verify": "chat",
    "bench": "chat",
    "info": "chat",
    "synth": "convert",
    "adb": "sideload",
}
USUAL = tuple(area for area in AREAS if area not in ("hdc", "mlc", "tests"))
_PYTHON = ("convert", "chat", "apk", "sideload", "hdc", "mlc")  # the areas that need its packages


@dataclass(frozen=True)
class Diagnosis:
    """All findings, and what they mean."""

    areas: tuple[str, ...]  # that were asked for
    findings: tuple[Finding, ...]

    def works(self, area: str) -> bool:
        """Whether all that an area needs works."""
        return not any(f.fails and area in f.areas for f in self.findings)

    @property
    def passed(self) -> bool:
        """Whether all that was asked for works."""
        return all(map(self.works, self.areas))

    def to_json(self) -> dict[str, Any]:
        """Returns the diagnosis as a JSON object."""
        return {
            "passed": self.passed,
            "works": {area: self.works(area) for area in self.areas},
            "findings": [asdict(finding) for finding in self.findings],
        }


def parse_areas(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the areas that a user's words mean, in their own order; the usual if none.

    Raises:
        DoctorError: a word is neither an area nor a command.
    """
    known = {**dict(zip(AREAS, AREAS, strict=True)), **COMMANDS}
    for name in names:
        if name not in known:
            raise DoctorError(
                f"{name!r:.40} is not a command or area; expected one of {', '.join(known)}"
            )
    chosen = {known[name] for name in names}
    if "tests" in chosen:
        return tuple(area for area in AREAS if area != "hdc" or area in chosen)
    return tuple(area for area in AREAS if area in chosen) or USUAL


def examine(areas: tuple[str, ...], *, needs_phone: bool) -> Diagnosis:
    """Checks all that the areas need.

    Args:
        areas: names of `AREAS`.
        needs_phone: whether what needs a phone counts as working only with one that can be used.
    """
    found: list[Finding] = []
    python = tuple(area for area in _PYTHON if area in areas)
    if python:
        found += python_checks.check_python(python, ("tests",) if "tests" in areas else ())
    if "chat" in areas:
        found += checks.check_machine(("chat",))
    if "convert" in areas:
        found += [python_checks.check_zig(("convert",)), *checks.check_cache(("convert",))]
    if "mlc" in areas:
        found += check_mlc(("mlc",))
    found += checks.check_programs(tools.programs(areas))
    if "qemu" in areas:
        found.append(checks.check_emulator(("qemu",)))
    found += [checks.check_package(package) for package in tools.packages(areas)]
    broken = {f.name for f in found if f.fails}
    for tool in _TOOLS:
        if tool.area in areas and tool.program not in broken:
            found += check_phones(tool, needed=needs_phone)
    return Diagnosis(areas, tuple(found))


@dataclass(frozen=True, kw_only=True)
class PhoneTool:
    """A program that reaches phones."""

    area: str  # for which phones are needed
    program: str
    what: str  # it reaches
    ready: str  # the state of one that can be used
    devices: Callable[[], dict[str, str]]
    advice: Callable[[str], str]
    shell: type[PhoneShell]
    misfit: Callable[[PhoneInfo], str | None]
    connect: str  # how to
    restart: str  # the command


def _no_engine(device: PhoneInfo) -> str | None:
    """Returns why a device cannot run an engine; None if it can."""
    if set(ABIS) & set(device.abis):
        return None
    return f"runs {', '.join(device.abis)}; the engine is for {' and '.join(ABIS)}"


_TOOLS = (
    PhoneTool(
        area="sideload",
        program=adb.PROGRAM,
        what="a phone",
        ready=adb.READY,
        devices=adb.devices,
        advice=adb.advice,
        shell=adb.Adb,
        misfit=misfit,
        connect="plug one in and allow USB debugging in its developer options (seven taps on the "
        "build number show them)",
        restart="adb kill-server",
    ),
    PhoneTool(
        area="hdc",
        program=hdc.PROGRAM,
        what="an OpenHarmony device",
        ready=hdc.READY,
        devices=hdc.devices,
        advice=hdc.advice,
        shell=hdc.Hdc,
        misfit=_no_engine,
        connect="plug one in and allow USB debugging in its developer options",
        restart="hdc kill -r",
    ),
)


def check_phones(tool: PhoneTool, *, needed: bool) -> list[Finding]:
    """Checks the connected phones.

    Args:
        tool: reaches them.
        needed: whether it is a fault if there is none that can be used.
    """
    found = Finding(name="phones", what=tool.what, areas=(tool.area,))
    try:
        states = tool.devices()
    except PhoneError as error:
        return [replace(found, state=BROKEN, detail=str(error), mend=tool.restart)]
    phones = [
        _check_phone(tool, replace(found, name=serial), state) for serial, state in states.items()
    ]
    if not phones:
        detail = f"none is connected; {tool.connect}"
        phones = [replace(found, name="phone", state=NOTE, detail=detail)]
    if needed and not any(phone.state == OK for phone in phones):
        return [replace(phone, state=MISSING) for phone in phones]
    return phones


def _check_phone(tool: PhoneTool, found: Finding, state: str) -> Finding:
    if state != tool.ready:
        return replace(found, state=NOTE, detail=f"not ready ({state}): {tool.advice(state)}")
    try:
        phone = tool.shell(found.name, away_seconds=0).info()
    except PhoneError as error:
        return replace(found, state=NOTE, detail=str(error))
    memory = f"{phone.memory_bytes / 2**30:.1f} GiB"
    version = f"{phone.model}, API {phone.api}, {phone.abis[0]}, {memory}"
    problem = tool.misfit(phone)
    return replace(found, version=version, state=NOTE if problem else OK, detail=problem)


class DoctorError(ToolkitError):
    """The user named an unknown area or command."""


def mends(findings: Collection[Finding]) -> list[str]:
    """Returns the commands that repair what fails; Debian packages share one command."""
    wanted = list(dict.fromkeys(f.mend for f in findings if f.fails and f.mend))
    prefix = tools.install_command(())
    debian = [name for text in wanted if text.startswith(prefix) for name in text.split()[3:]]
    plain = [name for name in dict.fromkeys(debian) if not name.startswith("-")]
    reinstall = ["--reinstall"] if "--reinstall" in debian else []
    together = [tools.install_command([*reinstall, *plain])] if plain else []
    return together + [text for text in wanted if not text.startswith(prefix)]
