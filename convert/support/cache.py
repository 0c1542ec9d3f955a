"""The user's cache: its folder, the integrity of its entries, and their removal.

Every file in it is stored with its hash, or has a hash that is known in advance. The hash is
checked before each use; a damaged file is made again, and a warning says so. What an engine
remembers of its speed needs none: a wrong choice costs time only. The cache may be deleted at any
time.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from convert.support.hashing import sha256_file
from convert.support.scratch import scratch_folder
from convert.support.user_folders import UserFolderError, user_folder
from convert.support.whole_file import whole_file
from quantize.errors import ToolkitError

CACHE_VARIABLE = "MINICPMV_CACHE"
DAY = 24 * 3600  # seconds
KEPT_SECONDS = 90 * DAY  # how long an unused entry is kept

_LOG = logging.getLogger(__name__)


class CacheError(ToolkitError):
    """The cache cannot be written, or its folder is not known."""


def cache_folder() -> Path:
    """Returns the cache's folder: `$MINICPMV_CACHE`, or `minicpmv` in the user's cache folder.

    Raises:
        CacheError: the user has no home.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    try:
        if chosen:
            return Path(chosen).expanduser().absolute()
        return user_folder("cache")
    except (RuntimeError, UserFolderError) as error:
        raise CacheError(
            f"{chosen or 'the cache'}: {error}; let {CACHE_VARIABLE} name a folder"
        ) from error


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns an OSError of the `with` block into an error that says how to make the cache writable.

    Raises:
        CacheError: the block raised an OSError.
    """
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"{error.filename or folder}: cannot be written: {error.strerror or error}; free some "
            f"space, make the folder yours, or let {CACHE_VARIABLE} name another one"
        ) from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a folder's lock: one process does the work, others wait and find it done."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # a file system without locks: the same work is done twice
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def hash_file(path: Path) -> Path:
    """Returns the path of the file that holds a cached file's hash."""
    return path.with_suffix(".sha256")


def keep(made: Path, path: Path) -> None:
    """Moves a file into the cache, and writes its hash beside it."""
    # The hash is written first: a file without its hash, or with another's, counts as damaged.
    hash_file(path).write_text(sha256_file(made))
    with whole_file(path) as file:
        made.rename(file)


def is_whole(path: Path) -> bool:
    """Tells whether a cached file exists and still has the hash stored with it."""
    try:
        return path.is_file() and sha256_file(path) == hash_file(path).read_text()
    except (OSError, ValueError):
        return False


def is_damaged(path: Path) -> bool:
    """Tells whether a cached file exists but is not whole."""
    return os.path.lexists(path) and not is_whole(path)


def pinned_file(path: Path, digest: str, fetch: Callable[[Path], Path]) -> Path:
    """Returns a cached file whose SHA-256 is known; fetches it if it is missing or damaged.

    Args:
        path: of the file in the cache.
        digest: its SHA-256.
        fetch: downloads the file into a folder, checks its hash, and returns its path.

    Raises:
        CacheError: the cache cannot be written.
    """
    if has_hash(path, digest):
        return path
    if os.path.lexists(path):
        _LOG.warning("%s: damaged; fetched again", path)
    with scratch_folder() as scratch:
        found = fetch(scratch)
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as whole:
                shutil.copyfile(found, whole)
    return path


def has_hash(path: Path, digest: str) -> bool:
    """Tells whether a file exists and has this SHA-256."""
    try:
        return path.is_file() and sha256_file(path) == digest
    except OSError:
        return False


def mark_used(entry: Path) -> None:
    """Records that a cache entry is in use."""
    with suppress(OSError):  # removed meanwhile, or owned by another user
        os.utime(entry)


def kept_entry(folder: Path, name: str, most_bytes: int) -> Path:
    """Returns the path of a cache entry, which may not exist yet; makes room for it, see `prune`.

    Raises:
        CacheError: the cache cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    entry = folder / name
    mark_used(entry)
    prune(folder, most_bytes)
    return entry


def prune(folder: Path, most_bytes: int) -> list[Path]:
    """Removes entries unused for `KEPT_SECONDS`, then the least recently used until the rest fits.

    Entries used within the last day stay in any case, because another process may be using them. So
    do entries that this user may not remove.

    Args:
        folder: the cache's folder; each file or folder in it is an entry.
        most_bytes: the limit on the size of all entries together.

    Returns:
        The removed entries.
    """
    now = time.time()
    entries = sorted(_entries(folder), reverse=True)  # the most recently used first
    room, removed = most_bytes, []
    for used, size, entry in entries:
        room -= size
        if used >= now - DAY or (room >= 0 and used >= now - KEPT_SECONDS):
            continue
        room += size
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            with suppress(OSError):
                entry.unlink()
        if os.path.lexists(entry):
            continue
        _LOG.info("%s: removed from the cache: not used for long", entry)
        removed.append(entry)
    return removed


def _entries(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """Yields each entry's time of last use, the size of its files in bytes, and its path."""
    for entry in folder.iterdir():
        with suppress(OSError):  # another process is pruning, or the entry is another user's
            paths = [entry, *(entry.rglob("*") if entry.is_dir() else ())]
            found = [path.lstat() for path in paths]
            size = sum(each.st_size for each in found if stat.S_ISREG(each.st_mode))
            yield max(each.st_mtime for each in found), size, entry
