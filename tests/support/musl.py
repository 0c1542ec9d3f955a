"""Debian's musl, which runs the hosts of the engine's library, for any architecture."""

from __future__ import annotations

from pathlib import Path

import pytest

from android.build.debian_package import download_package, take_member
from android.build.tools import ToolError
from convert.support.cache import cache_folder, is_whole, keep, locked
from convert.support.scratch import scratch_folder

_SUITE = "bookworm"
_DEBIAN = {"x86_64": "amd64", "aarch64": "arm64"}  # its names of architectures


def musl_loader(architecture: str) -> Path:
    """Returns musl's loader, in the cache; skips where Debian's package is out of reach."""
    home = cache_folder() / "musl"
    home.mkdir(parents=True, exist_ok=True)
    loader = home / f"ld-musl-{architecture}"
    problem = f"musl for {architecture} cannot be fetched"
    with locked(home):
        if is_whole(loader):
            return loader
        with scratch_folder(".musl-", home) as scratch:
            try:
                package = download_package(
                    "musl", _SUITE, scratch, problem, architecture=_DEBIAN[architecture]
                )
                made = scratch / loader.name
                take_member(package, f"./lib/{architecture}-linux-musl/libc.so", made, problem)
            except ToolError as error:
                pytest.skip(str(error))
            made.chmod(0o755)
            keep(made, loader)
    return loader
