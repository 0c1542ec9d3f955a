"""Fetches Bochs, which emulates x86's matrix unit (AMX); qemu does not.

It is Debian 13's, with the libraries that it needs, so that it runs on any Debian. One file in the
toolkit's cache holds them.
"""

from __future__ import annotations

import os
import re
import tarfile
from pathlib import Path

from android.build.debian_package import download_with_needs, made_once, unpack
from android.build.tools import ToolError, run
from convert.support.cache import cache_folder, is_whole, writing

_SUITE, _PACKAGE, _ARCHITECTURE = "trixie", "bochs", "x86_64"
_PROBLEM = "an emulator of x86's matrix unit cannot be fetched"
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_LOADER = f"{_LIBRARIES}/ld-linux-x86-64.so.2"
_PROGRAM, _PLUGINS = "usr/bin/bochs-bin", f"{_LIBRARIES}/bochs/plugins"
# Displays that need a window system; Bochs loads every plugin that it finds.
_LEFT_OUT = re.compile(r"libbx_(wx|x|sdl\d?)_gui|libbx_wx")


def kept_bochs() -> Path:
    """Returns the path of the cache's archive, whether or not it exists."""
    return cache_folder() / "packages" / "bochs.tar"


def lacks_bochs() -> bool:
    """Tells whether Bochs is missing, on a PC that could run it."""
    return os.uname().machine == _ARCHITECTURE and not is_whole(kept_bochs())


def fetch_bochs() -> Path:
    """Puts Bochs into the cache.

    Raises:
        ToolError: this is not a Debian, or apt cannot download the packages.
        CacheError: the cache cannot be written.
    """
    return made_once(kept_bochs(), lacks_bochs, _archive)


def unpack_bochs(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Unpacks the cache's Bochs into a folder, to be started there.

    Returns its command and its environment. All paths in them are relative: a buffer of Bochs
    overflows where its files lie in a folder with a long path.
    """
    with tarfile.open(kept_bochs()) as archive:
        archive.extractall(folder)  # our own archive, whose hash was compared
    home = {"HOME": ".", "PATH": os.defpath, "BXSHARE": ".", "LTDL_LIBRARY_PATH": _PLUGINS}
    return _command(Path()), home


def _command(root: Path) -> list[str]:
    paths = ":".join(str(root / path) for path in (_LIBRARIES, f"{_LIBRARIES}/pulseaudio"))
    return [str(root / _LOADER), "--library-path", paths, str(root / _PROGRAM)]


def _archive(scratch: Path) -> Path:
    """Downloads Bochs and what it needs; returns the archive."""
    root = scratch / "root"
    root.mkdir()
    for package in download_with_needs(_PACKAGE, _SUITE, scratch, _PROBLEM):
        unpack(package, root, _PROBLEM)
    made = scratch / kept_bochs().name
    with writing(kept_bochs().parent):
        _pack(root, made)
    return made


def _pack(root: Path, output: Path) -> None:
    """Writes Bochs, its plugins and all libraries that they need to an archive.

    Raises:
        ToolError: the packages lack one of them.
    """
    if not (root / _PROGRAM).is_file() or not (root / _LOADER).is_file():
        raise ToolError(f"{_PROBLEM}: Debian's {_PACKAGE} is laid out in another way")
    plugins = sorted((root / _PLUGINS).glob("*.so"))
    wanted = [root / _PROGRAM, *(one for one in plugins if not _LEFT_OUT.match(one.name))]
    files = {root / _LOADER, *wanted}
    for one in wanted:
        listed = run([*_command(root)[:-1], "--list", str(one)], _PROBLEM)
        files |= {Path(path) for path in re.findall(r"=> (\S+) \(0x", listed)}
    with tarfile.open(output, "w", dereference=True) as archive:
        for path in sorted(files):
            if not path.is_relative_to(root):
                raise ToolError(f"{_PROBLEM}: its packages lack {path.name}")
            archive.add(path, str(path.relative_to(root)))
