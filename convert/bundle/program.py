"""An engine's file, which is run only as the very bytes that its bundle's manifest names.

The opened file is hashed, and what is started is that descriptor and not the path again: a file
that takes its place meanwhile, as a conversion into the same folder puts one there, is never run
unchecked. Looking at the path once more after the start would notice too, but too late.
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

from convert.support.hashing import feed
from quantize.errors import BundleError

# A link is no file of a bundle, and a pipe must not make its reader wait.
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
# A file that was changed twice within a tick of the system's clock has the same times.
_SETTLED_NS = 2_000_000_000

# What files were when they were found right: path, device, inode, size, times, hash.
_found_right: set[tuple[str | int, ...]] = set()


@dataclass(frozen=True)
class Program:
    """One engine."""

    path: Path
    sha256: str  # as the manifest has it

    @contextmanager
    def opened(self) -> Iterator[int]:
        """Opens the file, makes sure that it is the manifest's, and yields its descriptor.

        A file is read only once in a process, as long as nothing touches it.

        Raises:
            BundleError: it is another, or cannot be read.
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
        """Raises BundleError unless the file is the manifest's."""
        with self.opened():
            pass

    def _check(self, descriptor: int) -> None:
        state = self._state(descriptor)
        if state in _found_right:
            return
        digest = hashlib.sha256()
        with open(descriptor, "rb", buffering=0, closefd=False) as file:
            feed(file, digest)
        if digest.hexdigest() != self.sha256:
            raise BundleError(
                f"{self.path}: altered: its SHA-256 is {digest.hexdigest()[:12]}…, the manifest "
                f"says {self.sha256[:12]}…; a program that is not the bundle's own is not run. "
                "Convert the checkpoint again; if that was done meanwhile, start this command again"
            )
        if self._state(descriptor) != state:
            raise BundleError(f"{self.path}: was written to while it was read; try again")
        if time.time_ns() - os.fstat(descriptor).st_ctime_ns > _SETTLED_NS:
            _found_right.add(state)

    def _state(self, descriptor: int) -> tuple[str | int, ...]:
        s = os.fstat(descriptor)
        if not stat.S_ISREG(s.st_mode):
            raise BundleError(f"{self.path}: not a regular file, so it is not run")
        times = (s.st_mtime_ns, s.st_ctime_ns)
        return (str(self.path), s.st_dev, s.st_ino, s.st_size, *times, self.sha256)


def forbidding_mount(path: Path) -> Path | None:
    """Returns where the file system is mounted that a file lies on, if nothing on it may run."""
    if not os.statvfs(path).f_flag & os.ST_NOEXEC:
        return None
    return next(folder for folder in path.resolve().parents if os.path.ismount(folder))
