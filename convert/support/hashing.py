"""Hashes of files, read through one buffer: allocating one per block costs more than the hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

_BUFFER_BYTES = 1 << 20  # fits the second-level cache


class Digest(Protocol):
    """A hash object, as `hashlib.sha256()` returns it."""

    def update(self, data: memoryview | bytes, /) -> None:
        """Adds bytes."""

    def hexdigest(self) -> str:
        """Returns the hash of all bytes so far."""

    def copy(self) -> Digest:
        """Returns an independent copy."""


def feed(
    file: BinaryIO,
    digest: Digest,
    limit: int | None = None,
    on_block: Callable[[int], None] | None = None,
) -> int:
    """Adds a file's next bytes to a digest; returns their number.

    Args:
        file: read from its current position.
        digest: gets the bytes.
        limit: the number of bytes at most; None: to the end.
        on_block: called with the number of bytes of each block.
    """
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    done = 0
    while limit is None or done < limit:
        room = _BUFFER_BYTES if limit is None else min(_BUFFER_BYTES, limit - done)
        count = file.readinto(buffer[:room])  # type: ignore[attr-defined]
        if not count:
            break
        digest.update(buffer[:count])
        done += count
        if on_block is not None:
            on_block(count)
    return done


def sha256_file(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        feed(file, digest)
    return digest.hexdigest()


def hash_sources(folder: Path, patterns: Sequence[str]) -> str:
    """Returns the SHA-256 over the names and texts of the source files that match the patterns."""
    found = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    assert found, f"{patterns}: no sources"
    parts = [[path.relative_to(folder).as_posix(), path.read_text("utf-8")] for path in found]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
