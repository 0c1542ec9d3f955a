"""A cache of compiled objects: a model of the same shapes need not be compiled again.

An entry is a folder, named by a hash of everything that its objects depend on; it also holds their
own hashes. It appears whole; a damaged one is compiled again, with a warning.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from convert.support.cache import mark_used, prune, writing

MOST_BYTES = 512 * 2**20  # of all entries; one has about 1 MiB
LIST = "objects.json"

_LOG = logging.getLogger(__name__)


def cached_objects(
    about: Mapping[str, Any], folder: Path, make: Callable[[Path], object], home: Path
) -> tuple[Path, ...]:
    """Returns objects, copied from the cache, or compiled if it lacks them or they are damaged.

    Args:
        about: everything that the objects depend on, as JSON values.
        folder: gets the objects.
        make: writes the objects into a folder.
        home: where the entries are.

    Raises:
        CacheError: the cache cannot be written.
    """
    entry = home / hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
    contents = read_entry(entry)
    if contents is None:
        if os.path.lexists(entry):
            _LOG.warning("%s: damaged; compiled again", entry)
        contents = _make(entry, make)
        prune(home, MOST_BYTES)
    mark_used(entry)
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return tuple(folder / name for name in sorted(contents))


def read_entry(entry: Path) -> dict[str, bytes] | None:
    """Returns an entry's objects by their names; None if it is missing or damaged."""
    try:
        hashes = json.loads((entry / LIST).read_bytes())
        contents = {name: (entry / name).read_bytes() for name in hashes}
        whole = all(_sha256(data) == hashes[name] for name, data in contents.items())
    except (
        OSError,
        ValueError,
        TypeError,
        RecursionError,
    ):  # a damaged list can raise any of these
        return None
    return contents if contents and whole else None


def _make(entry: Path, make: Callable[[Path], object]) -> dict[str, bytes]:
    """Makes an entry; returns its objects."""
    with writing(entry.parent):
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=entry.parent) as scratch:
            made = Path(scratch) / entry.name
            made.mkdir()
            make(made)
            contents = {path.name: path.read_bytes() for path in sorted(made.iterdir())}
            hashes = {name: _sha256(data) for name, data in contents.items()}
            (made / LIST).write_text(json.dumps(hashes), "utf-8")
            _put(made, entry)
    return contents


def _put(made: Path, entry: Path) -> None:
    """Moves a new entry to its place, unless another process was faster."""
    if entry.is_dir() and not entry.is_symlink():  # a damaged one
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)
    try:
        os.replace(made, entry)
    except OSError:
        if read_entry(entry) is None:
            raise


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
