"""Hashes of files, read through one buffer: a new one for every block costs more than the hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

_BUFFER_BYTES = 1 << 20  # fits the second-level cache


class Digest(Protocol):
    """What `hashlib.sha256()` gives."""

    def update(self, data: memoryview | bytes, /) -> None:
        """Takes more bytes."""

    def hexdigest(self) -> str:
        """Returns the hash of all bytes so far."""

    def copy(self) -> Digest:
        """Returns one that goes on alone."""


def feed(
    file: BinaryIO,
    digest: Digest,
    limit: int | None = None,
    on_block: Callable[[int], None] | None = None,
) -> int:
    """Gives a digest the file's next bytes; returns how many there were.

    Args:
        file: read from where it stands.
        digest: hears of every byte.
        limit: bytes at most; None: to the end.
        on_block: hears of every block's bytes.
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
    """Returns the SHA-256 over names and texts of source files of ours."""
    found = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    assert found, f"{patterns}: no sources"
    parts = [[path.relative_to(folder).as_posix(), path.read_text("utf-8")] for path in found]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
