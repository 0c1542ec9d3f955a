"""Damage to files, as disks and interrupted copies do it."""

from __future__ import annotations

from pathlib import Path


def flip(path: Path, at: float = 0.5) -> None:
    """Flips the lowest bit of a byte, somewhere between the beginning (0) and the end (1)."""
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] ^= 1
    path.write_bytes(data)
