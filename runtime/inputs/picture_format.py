"""Which format a picture's file has, by its first bytes, and which formats are taken.

`PictureFile.java` has the same table; the app also takes HEIC, and no TIFF.
"""

from __future__ import annotations

from quantize.errors import ToolkitError

START_BYTES = 32  # tell the format, and how many bits a PNG has
ADVICE = "choose a JPEG, PNG or WebP"
TAKEN = ("JPEG", "PNG", "WebP", "BMP", "TIFF")
_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"GIF8", "GIF"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),  # with a small picture for screens
    (b"%PDF", "PDF"),
    (b"8BPS", "PSD"),
    (b"\0\0\1\0", "ICO"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
)
_BRANDS: tuple[tuple[str, tuple[bytes, ...]], ...] = (
    ("HEIC", (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")),
    ("AVIF", (b"avif", b"avis")),
)


class PictureError(ToolkitError):
    """A file is no picture, or one that is too large to decode safely."""


def picture_format(start: bytes) -> str:
    """Returns the format of a file that is taken.

    Args:
        start: the file's first `START_BYTES`, or all of it.

    Raises:
        PictureError: another format, or none that is known.
    """
    kind = _format(start)
    if kind is None:
        raise PictureError(f"this is not a picture that can be decoded; {ADVICE}")
    if kind == "HEIC":
        raise PictureError(f"HEIC pictures cannot be decoded here; {ADVICE}")
    if kind not in TAKEN:
        raise PictureError(f"{kind} pictures are not supported; {ADVICE}")
    return kind


def _format(start: bytes) -> str | None:
    for begin, kind in _STARTS:
        if start.startswith(begin):
            return kind
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return "WebP"
    if start[4:8] == b"ftyp":
        for kind, brands in _BRANDS:
            if start[8:12] in brands:
                return kind
    return None
