"""The user's cache: where it is, whether what it holds is whole, what goes when it grows.

Every file in it is kept with its hash, or its hash is known, and is looked at before it is used:
what is damaged is made anew, with a line that says so. The cache may be removed at any time.
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
KEPT_SECONDS = 90 * DAY  # how long what nobody uses stays

_LOG = logging.getLogger(__name__)


class CacheError(ToolkitError):
    """The cache cannot be written, or nobody can say where it is."""


def cache_folder() -> Path:
    """Returns where the cache is: `$MINICPMV_CACHE`, or `minicpmv` in the user's caches.

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
    """Says what to do when the `with` block cannot write into a cache's folder.

    Raises:
        CacheError: in the place of an OSError.
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
    """Lets one process at a time work in a folder; another waits and finds the work done."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # a file system without locks: the same work is done twice
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def hash_file(path: Path) -> Path:
    """Returns where the hash of a kept file stands."""
    return path.with_suffix(".sha256")


def keep(made: Path, path: Path) -> None:
    """Moves a file to where it is kept, beside its hash."""
    # The hash comes first: a file without its hash, or with another's, is not whole.
    hash_file(path).write_text(sha256_file(made))
    with whole_file(path) as file:
        made.rename(file)


def is_whole(path: Path) -> bool:
    """Tells whether a file is there and has the hash that was noted when it was made."""
    try:
        return path.is_file() and sha256_file(path) == hash_file(path).read_text()
    except (OSError, ValueError):
        return False


def is_damaged(path: Path) -> bool:
    """Tells whether a file is there, but not whole."""
    return os.path.lexists(path) and not is_whole(path)


def pinned_file(path: Path, digest: str, fetch: Callable[[Path], Path]) -> Path:
    """Returns a file of the cache whose SHA-256 is known; fetches it if there is no such file.

    Args:
        path: where it is kept.
        digest: its SHA-256.
        fetch: brings the file into a folder, and has looked at its hash.

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
    """Tells whether a file is there and has a SHA-256."""
    try:
        return path.is_file() and sha256_file(path) == digest
    except OSError:
        return False


def mark_used(entry: Path) -> None:
    """Notes that an entry of a cache is in use."""
    with suppress(OSError):  # gone meanwhile, or another user's
        os.utime(entry)


def kept_entry(folder: Path, name: str, most_bytes: int) -> Path:
    """Returns where an entry of a cache is, or will be; makes room for it, see `prune`.

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
    """Removes entries that nobody used for long, and the oldest until the rest fits.

    What was used within the last day stays in any case: another process may be at work with it. So
    does what belongs to another user.

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
            with suppress(OSError):
                entry.unlink()
        if os.path.lexists(entry):
            continue
        _LOG.info("%s: removed from the cache: not used for long", entry)
        removed.append(entry)
    return removed


def _entries(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """Yields when each entry was used last, and the bytes of its files."""
    for entry in folder.iterdir():
        with suppress(OSError):  # another process prunes, too; or it is another user's
            paths = [entry, *(entry.rglob("*") if entry.is_dir() else ())]
            found = [path.lstat() for path in paths]
            size = sum(each.st_size for each in found if stat.S_ISREG(each.st_mode))
            yield max(each.st_mtime for each in found), size, entry
