"""Debian's musl, which runs the hosts of the engine's library, for any architecture."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from convert.support.cache import cache_folder, is_whole, keep, locked

DEBIAN = {"x86_64": "amd64", "aarch64": "arm64"}  # its names of architectures
_SECONDS = 120


def musl_loader(architecture: str, folder: Path) -> Path:
    """Returns musl's loader, unpacked into a folder; skips where Debian's package is out of reach.

    The package is not installed: one for another architecture needs the system's permission.
    """
    installed = Path(f"/lib/ld-musl-{architecture}.so.1")
    if installed.exists():
        return installed
    loader = folder / f"lib/{architecture}-linux-musl/libc.so"
    if not loader.exists():
        package = _package(DEBIAN[architecture])
        subprocess.run(["dpkg-deb", "--extract", str(package), str(folder)], check=True)
    return loader


def _package(architecture: str) -> Path:
    """Returns Debian's package from the cache, after downloading it there if it is not whole."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        pytest.skip("Debian's package musl is needed, and apt-get to fetch it")
    home = cache_folder() / "musl"
    home.mkdir(parents=True, exist_ok=True)
    package = home / f"{architecture}.deb"
    with locked(home):
        if not is_whole(package):
            with tempfile.TemporaryDirectory() as scratch:
                keep(_download(architecture, Path(scratch)), package)
    return package


def _download(architecture: str, folder: Path) -> Path:
    """Has apt-get fetch the package, with lists and a state of its own."""
    status = folder / "status"
    status.touch()
    for part in ("lists", "cache"):
        (folder / part / "partial").mkdir(parents=True)
    options = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "root",
        "Dir::State::status": status,
        "Dir::State::Lists": folder / "lists",
        "Dir::Cache": folder / "cache",
    }
    apt = ["apt-get", "-qq"]
    for name, value in options.items():
        apt += ["-o", f"{name}={value}"]
    for words in (["update"], ["download", "musl"]):
        try:
            done = subprocess.run(
                [*apt, *words], cwd=folder, capture_output=True, text=True, timeout=_SECONDS
            )
        except subprocess.TimeoutExpired:
            pytest.skip(f"apt-get {' '.join(words)} took longer than {_SECONDS} s")
        if done.returncode:
            said = " ".join(done.stderr.split()[:40])
            pytest.skip(f"apt-get {' '.join(words)}, for {architecture}, failed: {said}")
    found = list(folder.glob("*.deb"))
    if not found:
        pytest.skip("Debian has no package musl for " + architecture)
    return found[0]
