"""An engine's file, run only if its bytes are those that the bundle's manifest lists.

The file is opened once, and the hashed descriptor itself is executed rather than the path: a file
that replaces it meanwhile, as a conversion into the same folder does, is never run unchecked.
Checking the path again after the start would notice the change too late.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from convert.bundle.errors import BundleError
from convert.support.hashing import feed

# A bundle contains no symbolic links, and opening a pipe must not block.
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
# A file changed twice within one tick of the system clock keeps its times.
_SETTLED_NS = 2_000_000_000

# The state of files whose hash was right: path, device, inode, size, times, hash.
_verified_states: set[tuple[str | int, ...]] = set()


@dataclass(frozen=True)
class Program:
    """The engine of one target."""

    path: Path
    sha256: str  # as the manifest lists it

    @contextmanager
    def opened(self) -> Iterator[int]:
        """Opens the file, checks its hash, and yields the descriptor.

        Each process hashes a file only once, unless the file is modified.

        Raises:
            BundleError: the hash differs, or the file cannot be read.
        """
        try:
            descriptor = os.open(self.path, _FLAGS)
        except OSError as error:
            raise BundleError(
                f"{self.path}: cannot be read, so it is not run: {error.strerror or error}"
            ) from error
        try:
            self._check(descriptor)
            yield descriptor
        finally:
            os.close(descriptor)

    def check(self) -> None:
        """Raises BundleError unless the file is the one that the manifest lists."""
        with self.opened():
            pass

    def _check(self, descriptor: int) -> None:
        state = self._state(descriptor)
        if state in _verified_states:
            return
        digest = hashlib.sha256()
        with open(descriptor, "rb", buffering=0, closefd=False) as file:
            feed(file, digest)
        if digest.hexdigest() != self.sha256:
            raise BundleError(
                f"{self.path}: altered: its SHA-256 is {digest.hexdigest()[:12]}…, the manifest "
                f"says {self.sha256[:12]}…; only the bundle's own program is run. "
                "Convert the checkpoint again; if that was done meanwhile, run this command again"
            )
        if self._state(descriptor) != state:
            raise BundleError(f"{self.path}: was modified while it was read; try again")
        if time.time_ns() - os.fstat(descriptor).st_ctime_ns > _SETTLED_NS:
            _verified_states.add(state)

    def _state(self, descriptor: int) -> tuple[str | int, ...]:
        s = os.fstat(descriptor)
        if not stat.S_ISREG(s.st_mode):
            raise BundleError(f"{self.path}: not a regular file, so it is not run")
        times = (s.st_mtime_ns, s.st_ctime_ns)
        return (str(self.path), s.st_dev, s.st_ino, s.st_size, *times, self.sha256)


def forbidding_mount(path: Path) -> Path | None:
    """Returns the mount point of a file's file system if it is mounted `noexec`, else None."""
    if not os.statvfs(path).f_flag & os.ST_NOEXEC:
        return None
    return next(folder for folder in path.resolve().parents if os.path.ismount(folder))
