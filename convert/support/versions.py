"""The version of this toolkit, and those of installed packages."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _installed

TOOLKIT = "minicpmv"  # the name of this toolkit's own distribution
# The only place: pyproject.toml, `--version`, manifests, engines and the app read it here. After a
# release it names the next one, with `.dev0` (PEP 440).
VERSION = "0.2.0.dev0"


def package_version(name: str, absent: str = "not installed") -> str:
    """Returns the version of this toolkit or of an installed package, or `absent`."""
    if name == TOOLKIT:
        return VERSION
    try:
        return _installed(name)
    except PackageNotFoundError:
        return absent
