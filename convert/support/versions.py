"""Versions of installed packages."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

TOOLKIT = "minicpmv"  # the name of this toolkit's own distribution


def package_version(name: str, absent: str = "not installed") -> str:
    """Returns the version of an installed package, or `absent`."""
    try:
        return version(name)
    except PackageNotFoundError:
        return absent


def toolkit_version() -> str:
    """Returns this toolkit's version; `0.0.0` in a checkout that was never installed."""
    return package_version(TOOLKIT, "0.0.0")
