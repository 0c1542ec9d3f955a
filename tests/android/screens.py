"""Keeps the pictures that the page's tests took, as small files for the documents.

    python -m tests.android.screens build/screens android/screens

`make screenshots` runs the tests and then this.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from tests.android.test_screens import LOOKS

LIMIT = 1 << 20  # bytes of all of them
_COLOURS = 96
_EVERYWHERE = ("chat", "first-start")
_ONCE = ("empty", "history", "settings", "bench", "shared", "slices")  # in the first look


def main() -> None:
    """Replaces what is kept. Exit code 1: a picture is missing, or all are too large."""
    taken, kept = Path(sys.argv[1]), Path(sys.argv[2])
    names = ["web-demo", *(f"{look}-{name}" for look in LOOKS for name in _EVERYWHERE)]
    names += [f"{next(iter(LOOKS))}-{name}" for name in _ONCE]
    for old in kept.glob("*.png"):
        old.unlink()
    kept.mkdir(exist_ok=True)
    for name in names:
        with Image.open(taken / f"{name}.png") as picture:
            small = picture.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
            small.save(kept / f"{name}.png", optimize=True)
    total = sum(path.stat().st_size for path in kept.glob("*.png"))
    print(f"{len(names)} pictures in {kept}, {total >> 10} KiB")
    sys.exit(total > LIMIT)


if __name__ == "__main__":
    main()
