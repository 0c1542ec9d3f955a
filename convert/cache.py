"""Folders that would grow without end: what was used longest ago goes."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

DAY = 24 * 3600  # seconds
KEPT_SECONDS = 90 * DAY  # how long what nobody uses stays

_LOG = logging.getLogger(__name__)


def mark_used(entry: Path) -> None:
    """Notes that an entry of a cache is in use."""
    with suppress(OSError):  # gone meanwhile, or another user's
        os.utime(entry)


def kept_entry(folder: Path, name: str, most_bytes: int) -> Path:
    """Returns where an entry of a cache is, or will be; makes room for it, see `prune`."""
    folder.mkdir(parents=True, exist_ok=True)
    entry = folder / name
    mark_used(entry)
    prune(folder, most_bytes)
    return entry


def prune(folder: Path, most_bytes: int) -> list[Path]:
    """Removes entries that nobody used for long, and the oldest until the rest fits.

    What was used within the last day stays in any case: another process may be at work with it.

    Args:
        folder: of the cache; each file or folder in it is an entry.
        most_bytes: what all entries together may have.

    Returns:
        What was removed.
    """
    now = time.time()
    entries = sorted(_entries(folder), reverse=True)  # the latest first
    room, removed = most_bytes, []
    for used, size, entry in entries:
        room -= size
        if used >= now - DAY or (room >= 0 and used >= now - KEPT_SECONDS):
            continue
        room += size
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
        _LOG.info("%s: removed from the cache: not used for long", entry)
        removed.append(entry)
    return removed


def _entries(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """Yields when each entry was used last, and the bytes of its files."""
    for entry in folder.iterdir():
        with suppress(FileNotFoundError):  # another process prunes, too
            paths = [entry, *(entry.rglob("*") if entry.is_dir() else ())]
            found = [path.lstat() for path in paths]
            size = sum(each.st_size for each in found if stat.S_ISREG(each.st_mode))
            yield max(each.st_mtime for each in found), size, entry
