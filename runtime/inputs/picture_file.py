"""Decoded pixels in a file, the form in which the engine takes a picture.

The format stands in `runtime/engine/picture_file.h`: a header of 24 bytes, then the rows.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from runtime.inputs.picture_modes import to_rgb

MAGIC = b"MCPMVRGB"
VERSION = 1
HEADER = struct.Struct("<8sIIII")  # magic, version, width, height, zero
_STRIP_BYTES = 4 * 2**20  # converted at once


def write_picture_file(path: Path, picture: Image.Image) -> None:
    """Writes a picture's pixels as RGB, a strip of rows at a time: no second copy in memory."""
    with path.open("wb") as file:
        file.write(HEADER.pack(MAGIC, VERSION, *picture.size, 0))
        for strip in rgb_strips(picture):
            file.write(strip)


def picture_bytes(picture: Image.Image) -> bytes:
    """Returns what `write_picture_file` writes of a small picture."""
    return HEADER.pack(MAGIC, VERSION, *picture.size, 0) + b"".join(rgb_strips(picture))


def rgb_strips(picture: Image.Image) -> Iterator[bytes]:
    """Yields a picture's pixels as RGB, row after row, some MiB at once."""
    width, height = picture.size
    rows = max(1, _STRIP_BYTES // (3 * width))
    for top in range(0, height, rows):
        strip = picture.crop((0, top, width, min(top + rows, height)))
        yield to_rgb(strip).tobytes()
