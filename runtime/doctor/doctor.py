"""What `minicpmv doctor` checks for which commands, and its conclusion."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from android.build import tools
from android.build.phones import misfit
from quantize.errors import ToolkitError
from runtime.doctor import checks, python_checks
from runtime.doctor.checks import BROKEN, MISSING, NOTE, OK, Finding
from runtime.doctor.mlc_checks import check_mlc
from runtime.engine_client.adb import READY, Adb, AdbError, advice, devices

# The areas that a user may name, and the commands and options that each covers.
AREAS = {
    "convert": "convert, synth",
    "chat": "chat, verify, bench, info",
    "apk": "apk",
    "sideload": "sideload, --engine adb",
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
USUAL = tuple(area for area in AREAS if area not in ("mlc", "tests"))
_PYTHON = ("convert", "chat", "apk", "sideload", "mlc")  # the areas that need its packages


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
        return tuple(AREAS)
    return tuple(area for area in AREAS if area in chosen) or USUAL


def examine(areas: tuple[str, ...], *, needs_phone: bool) -> Diagnosis:
    """Checks all that the areas need.

    Args:
        areas: names of `AREAS`.
        needs_phone: whether sideloading counts as working only with a phone that can be used.
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
    has_adb = not any(f.fails for f in found if f.name == "adb")
    if "sideload" in areas and has_adb:
        found += check_phones(needed=needs_phone)
    return Diagnosis(areas, tuple(found))


def check_phones(*, needed: bool) -> list[Finding]:
    """Checks the connected phones.

    Args:
        needed: whether it is a fault if there is none that can be used.
    """
    try:
        states = devices()
    except AdbError as error:
        mend = "adb kill-server"
        return [_phone("phones", state=BROKEN, detail=str(error), mend=mend)]
    found = [_check_phone(serial, state) for serial, state in states.items()]
    if not found:
        detail = (
            "none is connected; plug one in and allow USB debugging in its developer options "
            "(seven taps on the build number show them)"
        )
        found = [_phone("phone", state=NOTE, detail=detail)]
    if needed and not any(phone.state == OK for phone in found):
        return [_phone(f.name, f.version, state=MISSING, detail=f.detail) for f in found]
    return found


def _check_phone(serial: str, state: str) -> Finding:
    if state != READY:
        return _phone(serial, state=NOTE, detail=f"not ready ({state}): {advice(state)}")
    try:
        phone = Adb(serial, away_seconds=0).info()
    except AdbError as error:
        return _phone(serial, state=NOTE, detail=str(error))
    memory = f"{phone.memory_bytes / 2**30:.1f} GiB"
    version = f"{phone.model}, API {phone.api}, {phone.abis[0]}, {memory}"
    problem = misfit(phone)
    return _phone(serial, version, state=NOTE if problem else OK, detail=problem)


def _phone(
    name: str,
    version: str | None = None,
    *,
    state: str,
    detail: str | None,
    mend: str | None = None,
) -> Finding:
    return Finding(
        name=name,
        what="a phone",
        areas=("sideload",),
        state=state,
        version=version,
        detail=detail,
        mend=mend,
    )


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
