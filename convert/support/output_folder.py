"""An output folder that appears whole or not at all.

It is written next to its final path as `.NAME.partial-XXXXXXXX` and renamed when it is complete.
The writer holds a lock on it, which the system releases however the process ends. So the next run
can tell an abandoned folder from one that is still being written: it removes the abandoned one, or
resumes from it on request.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from convert.support.regular_file import open_regular
from convert.support.scratch import ScratchError
from convert.support.strict_json import load_json
from quantize.errors import ToolkitError

_MIB = 2**20
_MARK_WITHIN = 4096  # bytes
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class UnlistedFile:
    """A file of ours that no manifest lists, since it may change; its text has a mark."""

    name: str
    mark: str  # in the first bytes

    def is_ours(self, path: Path) -> bool:
        """Tells whether a file has the mark."""
        try:
            with open_regular(path) as file:
                return self.mark.encode() in file.read(_MARK_WITHIN)
        except OSError:
            return False


@dataclass(frozen=True)
class FolderKind:
    """What identifies a folder as ours: a JSON manifest with this `format`."""

    manifest: str  # file name
    format: str
    noun: str  # what messages call it
    article: str = "a"  # of the noun
    unlisted: UnlistedFile | None = None


class OutputFolderError(ToolkitError):
    """An output path is taken: it holds files that are not ours."""


class SpaceError(OutputFolderError):
    """The disk is full, or has too little space for the output."""


# A later run can resume after these; any other error would occur again.
_INTERRUPTIONS = (KeyboardInterrupt, SystemExit, OSError, MemoryError, SpaceError, ScratchError)


class OutputFolder:
    """Context manager that yields a folder to write to; `commit` moves it to its final path.

    Without `commit`, the folder is removed at the end of the block. But if an interruption or a
    full disk ends the block and `resumable` returns true, it stays, and a later run can resume.
    """

    def __init__(self, path: Path, kind: FolderKind, *, resume: bool = False) -> None:
        """Checks that `path` may be written: it is free, an empty folder, or a folder of `kind`.

        Args:
            path: the final path.
            kind: the kind of folder.
            resume: continue with what an interrupted run left, if anything.

        Raises:
            OutputFolderError: something else is there; it is left alone.
        """
        self.path = Path(
            os.path.realpath(path)
        )  # a symbolic link stays; the folder that it points to is replaced
        self.resumable: Callable[[], bool] = lambda: False
        self._kind, self._resume = kind, resume
        self._partial: Path | None = None
        self._lock: int | None = None
        self._made: list[Path] = []
        check_free(self.path, kind)

    def require_space(self, nbytes: int) -> None:
        """Raises SpaceError unless the disk has room for `nbytes` more bytes."""
        folder = next(p for p in (self.path.parent, *self.path.parents) if p.is_dir())
        free = shutil.disk_usage(folder).free
        if free < nbytes:
            raise SpaceError(
                f"{self.path}: the disk has {free / _MIB:,.0f} MiB free, the {self._kind.noun} "
                f"takes about {nbytes / _MIB:,.0f} MiB; free some space or choose another disk"
            )

    def __enter__(self) -> Path:
        parent = self.path.parent
        self._made = [p for p in (parent, *parent.parents) if not p.exists()]
        parent.mkdir(parents=True, exist_ok=True)
        with _locked(parent):
            left = _take_stale(self.path, keep=self._resume)
            if left is not None:
                self._partial, self._lock = left
                return self._partial
            if self._resume:
                _LOG.info("%s: nothing to resume from; starting from the beginning", self.path)
            self._partial = parent / f".{self.path.name}.partial-{secrets.token_hex(4)}"
            self._partial.mkdir()
            self._lock = _try_lock(self._partial)
        return self._partial

    def commit(self) -> None:
        """Moves the folder to its final path; what was there is removed only then."""
        assert self._partial is not None, "commit comes inside the with block"
        check_free(self.path, self._kind)  # another process may have written there meanwhile
        _sync(self._partial)
        old = None
        with _locked(self.path.parent):
            if self.path.exists() and any(self.path.iterdir()):
                old = self.path.with_name(f".{self.path.name}.old-{secrets.token_hex(4)}")
                self.path.rename(old)
            try:
                self._partial.rename(self.path)
            except BaseException:
                if old is not None:
                    old.rename(self.path)
                raise
            self._partial = None
        if old is not None:
            shutil.rmtree(old)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        stays = isinstance(error, _INTERRUPTIONS) and self.resumable()
        if self._partial is not None and not stays:
            shutil.rmtree(self._partial, ignore_errors=True)
            for folder in self._made:
                with suppress(OSError):
                    folder.rmdir()
        if self._lock is not None:
            os.close(self._lock)
        if self._partial is not None and stays:
            _LOG.warning("%s keeps what was written; continue with --resume", self._partial)
        if isinstance(error, OSError) and error.errno in _FULL:
            then = (
                "free some space and continue with --resume"
                if stays
                else "what was written has been removed. Free some space or choose another disk"
            )
            raise SpaceError(
                f"{self.path}: the disk became full while the {self._kind.noun} was written; {then}"
            ) from error


def check_free(path: Path, kind: FolderKind) -> None:
    """Raises OutputFolderError if replacing `path` would remove files that are not ours."""
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise OutputFolderError(f"{path}: exists and is not a folder; choose another output")
    if not any(path.iterdir()):
        return
    listed = _listed_files(path, kind)
    if listed is None:
        raise OutputFolderError(
            f"{path}: exists but holds no {kind.noun} ({kind.manifest} is missing or not ours); "
            "choose another output, or remove it yourself"
        )
    names = {str(p.relative_to(path)) for p in path.rglob("*") if not p.is_dir() or p.is_symlink()}
    own = {kind.manifest}
    if kind.unlisted is not None and kind.unlisted.is_ours(path / kind.unlisted.name):
        own.add(kind.unlisted.name)
    foreign = sorted(names - listed - own)
    if foreign:
        raise OutputFolderError(
            f"{path}: holds {foreign[0]}, which is not part of the {kind.noun} and would be lost; "
            "move it away, or choose another output"
        )


def _listed_files(path: Path, kind: FolderKind) -> set[str] | None:
    """Returns the files that a folder's manifest lists; None if it has no manifest of `kind`.

    A damaged folder of ours may be replaced, so the manifest is not validated any further.
    """
    manifest = path / kind.manifest
    try:
        raw = load_json(manifest)
    except (OSError, ValueError):
        return None
    if not isinstance(raw, dict) or raw.get("format") != kind.format:
        return None
    files = raw.get("files")
    return set(files) if isinstance(files, dict) else set()


def _take_stale(path: Path, *, keep: bool) -> tuple[Path, int] | None:
    """Removes what killed runs left next to `path`, and completes an interrupted swap.

    Args:
        path: the final path.
        keep: keep the newest partial folder, and return it with its lock.
    """
    pattern = re.compile(rf"\.{re.escape(path.name)}\.(partial|old)-[0-9a-f]{{8}}")
    kept: tuple[Path, int] | None = None
    for folder in sorted(path.parent.iterdir(), key=_age):
        match = pattern.fullmatch(folder.name)
        if not match or folder.is_symlink() or not folder.is_dir():
            continue
        if match[1] == "old" and not path.exists():
            folder.rename(path)
            continue
        lock = _try_lock(folder)
        if lock is None:
            continue
        if keep and kept is None and match[1] == "partial":
            kept = folder, lock
            continue
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
    return kept


def _age(path: Path) -> float:
    """Returns a sort key that puts newer folders first."""
    try:
        return -path.lstat().st_mtime
    except FileNotFoundError:  # renamed meanwhile
        return 0.0


def _try_lock(folder: Path) -> int | None:
    """Locks a folder until the descriptor is closed; None if another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # locked by another process, or no locks on this file system: never stale
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def _locked(parent: Path) -> Iterator[None]:
    """Makes runs create, swap and remove folders next to each other one at a time."""
    descriptor = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sync(folder: Path) -> None:
    """Flushes a folder's files to disk, so that the rename cannot precede their content."""
    for path in [folder, *folder.rglob("*")]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
