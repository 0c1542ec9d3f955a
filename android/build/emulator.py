"""Fetches a qemu that emulates Arm's matrix unit, where the system's is too old.

It is Debian 13's. apt downloads the package from the mirror that this system uses and checks its
signature; nothing is installed: the one program that is needed goes to the toolkit's cache.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import tarfile
from pathlib import Path

from android.build.tools import ToolError, run
from convert.support.cache import keep, locked, writing
from convert.support.scratch import scratch_folder
from runtime.engine_client.emulator import emulates_sme, emulator, kept_emulator

_SUITE, _PACKAGE, _MEMBER = "trixie", "qemu-user", "./usr/bin/qemu-aarch64"
_NEEDED = ("apt-get", "dpkg-deb")
_PROBLEM = "an emulator of Arm's matrix unit cannot be fetched"


def lacks_emulator() -> bool:
    """Tells whether the emulator that would be used is missing, or too old for SME."""
    found = emulator()
    return found is None or not emulates_sme(found)


def fetch_emulator() -> Path:
    """Puts the emulator into the cache.

    Raises:
        ToolError: this is not a Debian, or apt cannot download the package.
        CacheError: the cache cannot be written.
    """
    kept = kept_emulator()
    with writing(kept.parent):
        kept.parent.mkdir(parents=True, exist_ok=True)
    with locked(kept.parent):
        if lacks_emulator():
            with scratch_folder(".qemu-", kept.parent) as scratch:
                made = _program(_download(scratch), scratch)
                with writing(kept.parent):
                    keep(made, kept)
    return kept


def _download(scratch: Path) -> Path:
    """Lets apt download the package, with lists and archives of its own."""
    mirror = _mirror()
    for folder in ("lists/partial", "cache/archives/partial", "package"):
        (scratch / folder).mkdir(parents=True)
    sources = scratch / "sources.list"
    sources.write_text(f"deb {mirror} {_SUITE} main\n")
    settings = {
        "Dir::State::lists": scratch / "lists",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": scratch / "cache",
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "-",
        "APT::Sandbox::User": "root",  # apt's own user may not read the scratch folder
        "Acquire::Languages": "none",
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
    }
    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in settings.items())]
    run([*apt, "update"], _PROBLEM)
    run([*apt, "download", _PACKAGE], _PROBLEM, folder=scratch / "package")
    found = list((scratch / "package").glob("*.deb"))
    if len(found) != 1:
        raise ToolError(f"{_PROBLEM}: apt-get brought {len(found)} packages for {_PACKAGE}")
    return found[0]


def _mirror() -> str:
    """Returns the address of the mirror that apt has Debian's main archive from."""
    release = _debian_release()
    lacking = [name for name in _NEEDED if shutil.which(name) is None]
    if release is None or lacking:
        raise ToolError(f"{_PROBLEM}: it comes from Debian, and this system is another")
    about = ["Created-By: Packages", f"Release: {release}", "Component: main"]
    addresses = run(["apt-get", "indextargets", "--format=$(REPO_URI)", *about], _PROBLEM).split()
    if not addresses:
        raise ToolError(f"{_PROBLEM}: apt knows no mirror of Debian {release}")
    return addresses[0]


def _debian_release() -> str | None:
    """Returns the code name of this Debian; None on another system."""
    try:
        about = platform.freedesktop_os_release()
    except OSError:
        return None
    return about.get("VERSION_CODENAME") if about["ID"] == "debian" else None


def _program(package: Path, scratch: Path) -> Path:
    """Takes the program out of a package, which unpacked is forty times as large."""
    made = scratch / kept_emulator().name
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as unpacking:
        try:
            assert unpacking.stdout is not None
            with tarfile.open(fileobj=unpacking.stdout, mode="r|") as archive:
                member = next((one for one in archive if one.name == _MEMBER), None)
                content = archive.extractfile(member) if member is not None else None
                if content is None:
                    raise ToolError(f"{_PROBLEM}: {package.name} holds no {_MEMBER}")
                with made.open("wb") as file:
                    shutil.copyfileobj(content, file)
        except (tarfile.TarError, EOFError) as error:
            raise ToolError(f"{_PROBLEM}: {package.name} is damaged: {error}") from error
        finally:
            unpacking.kill()
    made.chmod(0o755)
    if not emulates_sme(str(made)):
        raise ToolError(f"{_PROBLEM}: the program in {package.name} does not run, or is too old")
    return made
