"""Compiled blocks, kept from run to run: a model of the same shapes need not be compiled again.

An entry is a folder, named by a hash of all that its objects follow from, with their own hashes
beside them. It appears whole; one that is damaged is made anew. The cache may be removed at any
time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from convert.cache import mark_used, prune
from convert.toolchain import cache_folder
from quantize.errors import ToolkitError

MOST_BYTES = 512 * 2**20  # of all entries; one has about 1 MiB
LIST = "objects.json"


class CacheError(ToolkitError):
    """The cache cannot be written."""


def cached_objects(
    about: Mapping[str, Any],
    folder: Path,
    make: Callable[[Path], object],
    *,
    cache: Path | None = None,
) -> tuple[Path, ...]:
    """Returns objects, copied from the cache, or made if it does not have them whole.

    Args:
        about: all that the objects follow from, as JSON has it.
        folder: gets the objects.
        make: writes the objects into a folder.
        cache: where entries are; None takes `blocks` in the user's cache.

    Raises:
        CacheError: the cache cannot be written.
    """
    home = cache or cache_folder() / "blocks"
    entry = home / hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
    objects = _load(entry, folder)
    if objects is None:
        try:
            home.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".making-", dir=home) as scratch:
                made = Path(scratch) / entry.name
                made.mkdir()
                make(made)
                names = sorted(path.name for path in made.iterdir())
                hashes = {name: _sha256((made / name).read_bytes()) for name in names}
                (made / LIST).write_text(json.dumps(hashes), "utf-8")
                shutil.rmtree(entry, ignore_errors=True)  # a damaged one
                objects = _load(made, folder)
                if not entry.exists():
                    os.replace(made, entry)
        except OSError as error:
            raise CacheError(
                f"{home}: cannot be written: {error.strerror or error}; free some space, or let "
                "MINICPMV_CACHE name another folder"
            ) from error
        prune(home, MOST_BYTES)
    assert objects is not None, "what was just made is whole"
    mark_used(entry)
    return objects


def _load(entry: Path, folder: Path) -> tuple[Path, ...] | None:
    """Copies an entry's objects; None if they are not there or not whole."""
    try:
        hashes = json.loads((entry / LIST).read_bytes())
        contents = {name: (entry / name).read_bytes() for name in hashes}
    except (OSError, ValueError):
        return None
    if not contents or any(_sha256(data) != hashes[name] for name, data in contents.items()):
        return None
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return tuple(folder / name for name in sorted(contents))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
