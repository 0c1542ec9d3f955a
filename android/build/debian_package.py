"""Fetches a file from a Debian package, of any release and architecture, without installing it.

apt downloads the package from the mirror that this system uses and checks its signature.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

from android.build.tools import ToolError, run
from convert.support.cache import keep, locked, writing
from convert.support.scratch import scratch_folder

_NEEDED = ("apt-get", "dpkg-deb")


def download_package(
    name: str, suite: str, scratch: Path, problem: str, *, architecture: str | None = None
) -> Path:
    """Lets apt download a package, with lists and archives of its own.

    Args:
        name: the package.
        suite: the release's code name.
        scratch: an empty folder, for all that apt writes.
        problem: begins the errors.
        architecture: Debian's name of it; None takes this system's.

    Raises:
        ToolError: this is not a Debian, or apt cannot download the package.
    """
    apt = _updated_apt(suite, scratch, problem, architecture)
    (scratch / "package").mkdir()
    run([*apt, "download", name], problem, folder=scratch / "package")
    found = list((scratch / "package").glob("*.deb"))
    if len(found) != 1:
        raise ToolError(f"{problem}: apt-get brought {len(found)} packages for {name}")
    return found[0]


def made_once(kept: Path, is_missing: Callable[[], bool], make: Callable[[Path], Path]) -> Path:
    """Returns a file of the cache; if it is missing, makes it in a scratch folder.

    Raises:
        CacheError: the cache cannot be written.
    """
    with writing(kept.parent):
        kept.parent.mkdir(parents=True, exist_ok=True)
    with locked(kept.parent):
        if is_missing():
            with scratch_folder(".making-", kept.parent) as scratch:
                made = make(scratch)
                with writing(kept.parent):
                    keep(made, kept)
    return kept


def download_with_needs(name: str, suite: str, scratch: Path, problem: str) -> list[Path]:
    """Does the same for a package and all that it depends on, the C library included.

    Raises:
        ToolError: see `download_package`.
    """
    apt = _updated_apt(suite, scratch, problem, None)
    options = ("-y", "-oAPT::Install-Recommends=false", "--download-only")
    run([*apt, *options, "install", name], problem)
    return sorted((scratch / "cache" / "archives").glob("*.deb"))


def unpack(package: Path, folder: Path, problem: str) -> None:
    """Unpacks a package's files into a folder.

    Raises:
        ToolError: the package is damaged.
    """
    run(["dpkg-deb", "--extract", str(package), str(folder)], problem)


def _updated_apt(suite: str, scratch: Path, problem: str, architecture: str | None) -> list[str]:
    """Returns a command that begins with apt's settings, after it has fetched the lists."""
    mirror = _mirror(problem)
    for folder in ("lists/partial", "cache/archives/partial"):
        (scratch / folder).mkdir(parents=True)
    sources = scratch / "sources.list"
    sources.write_text(f"deb {mirror} {suite} main\n")
    settings: dict[str, object] = {
        "Dir::State::lists": scratch / "lists",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": scratch / "cache",
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "-",
        "APT::Sandbox::User": "root",  # apt's own user may not read the scratch folder
        "Acquire::Languages": "none",
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
    }
    if architecture is not None:
        settings |= {"APT::Architecture": architecture, "APT::Architectures": architecture}
    apt = ["apt-get", "-qq", *(f"-o{key}={value}" for key, value in settings.items())]
    run([*apt, "update"], problem)
    return apt


def take_member(package: Path, member: str, output: Path, problem: str) -> None:
    """Takes one file out of a package, which unpacked may be forty times as large.

    Raises:
        ToolError: the package is damaged or lacks the file.
    """
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as unpacking:
        try:
            assert unpacking.stdout is not None
            with tarfile.open(fileobj=unpacking.stdout, mode="r|") as archive:
                found = next((one for one in archive if one.name == member), None)
                content = archive.extractfile(found) if found is not None else None
                if content is None:
                    raise ToolError(f"{problem}: {package.name} holds no {member}")
                with output.open("wb") as file:
                    shutil.copyfileobj(content, file)
        except (tarfile.TarError, EOFError) as error:
            raise ToolError(f"{problem}: {package.name} is damaged: {error}") from error
        finally:
            unpacking.kill()


def _mirror(problem: str) -> str:
    """Returns the address of the mirror that apt has Debian's main archive from."""
    release = _debian_release()
    lacking = [name for name in _NEEDED if shutil.which(name) is None]
    if release is None or lacking:
        raise ToolError(f"{problem}: it comes from Debian, and this system is another")
    about = ["Created-By: Packages", f"Release: {release}", "Component: main"]
    addresses = run(["apt-get", "indextargets", "--format=$(REPO_URI)", *about], problem).split()
    if not addresses:
        raise ToolError(f"{problem}: apt knows no mirror of Debian {release}")
    return addresses[0]


def _debian_release() -> str | None:
    """Returns the code name of this Debian; None on another system."""
    try:
        about = platform.freedesktop_os_release()
    except OSError:
        return None
    return about.get("VERSION_CODENAME") if about["ID"] == "debian" else None
