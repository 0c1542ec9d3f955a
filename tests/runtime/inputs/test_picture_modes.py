"""What every mode of a picture becomes, by value; 16 bits, palettes and transparency among them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import OPEN_INFO

from runtime.inputs.picture import open_picture, preprocess
from runtime.inputs.picture_file import rgb_strips
from runtime.inputs.picture_format import PictureError
from runtime.inputs.picture_modes import to_rgb

GREY, COLOURS, PALETTE, GREY_ALPHA, COLOURS_ALPHA = 0, 2, 3, 4, 6  # PNG's colour types
Pixel = tuple[int, int, int]


def png(kind: int, bits: int, row: bytes, width: int, **chunks: bytes) -> bytes:
    """Returns a PNG of one row."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checked = name + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, 1, bits, kind, 0, 0, 0)
    more = b"".join(chunk(name.encode(), content) for name, content in chunks.items())
    data = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + data + chunk(b"IEND", b"")


def tiff(
    order: str, bits: Sequence[int], photometric: int, row: bytes, width: int, extra: int = -1
) -> bytes:
    """Returns a TIFF of one row, not compressed; `extra` is what alpha was done to colours."""
    tags: list[tuple[int, Sequence[int]]] = [
        (256, [width]), (257, [1]), (258, bits), (259, [1]), (262, [photometric]), (273, [0]),
        (277, [len(bits)]), (278, [1]), (279, [len(row)]),
        *([(338, [extra])] if extra >= 0 else []),
    ]  # fmt: skip
    after = 8 + 2 + 12 * len(tags) + 4  # where values of more than 4 bytes stand
    long = words(order, *bits) if len(bits) > 2 else b""
    table = words(order, len(tags))
    for tag, values in tags:
        if tag == 273:
            values = [after + len(long)]
        place = struct.pack(order + "I", after) if len(values) > 2 else words(order, *values, 0)[:4]
        table += struct.pack(order + "HHI", tag, 3, len(values)) + place
    start = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    return start + table + bytes(4) + long + row


def words(order: str, *values: int) -> bytes:
    return struct.pack(f"{order}{len(values)}H", *values)


def grey(*levels: int) -> list[Pixel]:
    return [(level, level, level) for level in levels]


# By hand: a level of 16 bits counts with its upper 8, fewer bits are spread from 0 to 255.
FILES: dict[str, tuple[bytes, list[Pixel]]] = {
    "PNG, grey, 1 bit": (png(GREY, 1, b"\x40", 3), grey(0, 255, 0)),
    "PNG, grey, 2 bits": (png(GREY, 2, b"\x1b", 4), grey(0, 85, 170, 255)),
    "PNG, grey, 4 bits": (png(GREY, 4, b"\x08\xf0", 3), grey(0, 136, 255)),
    "PNG, grey, 8 bits": (png(GREY, 8, b"\x00\x80\xff", 3), grey(0, 128, 255)),
    "PNG, grey, 16 bits": (
        png(GREY, 16, words(">", 0, 0x00FF, 0x0100, 0x7FFF, 0x8000, 0xFFFF), 6),
        grey(0, 0, 1, 127, 128, 255),
    ),
    "PNG, colours, 16 bits": (
        png(COLOURS, 16, words(">", 0xFFFF, 0x8000, 0x00FF), 1),
        [(255, 128, 0)],
    ),
    "PNG, palette": (
        png(PALETTE, 8, b"\1\0\1", 3, PLTE=bytes([9, 8, 7, 1, 2, 3])),
        [(1, 2, 3), (9, 8, 7), (1, 2, 3)],
    ),
    # What is transparent is white.
    "PNG, grey, 1 bit, black is transparent": (
        png(GREY, 1, b"\x40", 3, tRNS=words(">", 0)), grey(255, 255, 255)
    ),
    "PNG, grey, 2 bits, level 1 is transparent": (
        png(GREY, 2, b"\x1b", 4, tRNS=words(">", 1)), grey(0, 255, 170, 255)
    ),
    "PNG, grey, 4 bits, level 8 is transparent": (
        png(GREY, 4, b"\x08\xf0", 3, tRNS=words(">", 8)), grey(0, 255, 255)
    ),
    "PNG, grey, 8 bits, level 128 is transparent": (
        png(GREY, 8, b"\x00\x80\x81", 3, tRNS=words(">", 128)), grey(0, 255, 129)
    ),
    "PNG, grey, 16 bits, level 256 is transparent": (
        png(GREY, 16, words(">", 255, 256, 257, 0), 4, tRNS=words(">", 256)), grey(0, 255, 1, 0)
    ),
    "PNG, colours, one is transparent": (
        png(COLOURS, 8, bytes([1, 2, 3, 1, 2, 4]), 2, tRNS=words(">", 1, 2, 3)),
        [(255, 255, 255), (1, 2, 4)],
    ),
    "PNG, colours, 16 bits, one is transparent": (
        png(COLOURS, 16, words(">", 257, 514, 771, 257, 514, 1028), 2,
            tRNS=words(">", 257, 514, 771)),
        [(255, 255, 255), (1, 2, 4)],
    ),
    "PNG, palette, one entry is transparent": (
        png(PALETTE, 8, b"\0\1", 2, PLTE=bytes([9, 8, 7, 1, 2, 3]), tRNS=b"\xff\0"),
        [(9, 8, 7), (255, 255, 255)],
    ),
    "PNG, palette, entries with alpha": (
        png(PALETTE, 8, b"\0\1\2", 3, PLTE=bytes([0, 0, 0, 0, 100, 200, 5, 6, 7]),
            tRNS=b"\x80\x40"),
        [(127, 127, 127), (191, 216, 241), (5, 6, 7)],
    ),
    "PNG, palette of 2 bits, entries with alpha": (
        png(PALETTE, 2, b"\x10", 2, PLTE=bytes([0, 0, 0, 0, 100, 200]), tRNS=b"\x80\x40"),
        [(127, 127, 127), (191, 216, 241)],
    ),
    "PNG, grey and alpha": (
        png(GREY_ALPHA, 8, bytes([0, 0, 0, 128, 0, 255, 200, 128]), 4), grey(255, 127, 0, 227)
    ),
    "PNG, grey and alpha, 16 bits": (
        png(GREY_ALPHA, 16, words(">", 0, 0, 0, 0x80FF, 0xC8FF, 0x8000, 0x1234, 0xFFFF), 4),
        grey(255, 127, 227, 0x12),
    ),
    "PNG, colours and alpha": (
        png(COLOURS_ALPHA, 8, bytes([0, 100, 200, 64, 0, 0, 0, 0, 1, 2, 3, 255]), 3),
        [(191, 216, 241), (255, 255, 255), (1, 2, 3)],
    ),
    "PNG, colours and alpha, 16 bits": (
        png(COLOURS_ALPHA, 16, words(">", 0x00FF, 0x64FF, 0xC8FF, 0x40FF), 1), [(191, 216, 241)]
    ),
    "TIFF, grey, 12 bits": (
        tiff("<", [12], 1, bytes([0x00, 0x08, 0x00, 0xFF, 0xF0, 0x10]), 4), grey(0, 128, 255, 1)
    ),
    "TIFF, grey, 16 bits": (
        tiff("<", [16], 1, words("<", 0, 0x8000, 0xFFFF), 3), grey(0, 128, 255)
    ),
    "TIFF, grey, 16 bits, big-endian": (
        tiff(">", [16], 1, words(">", 0, 0x8000, 0xFFFF), 3), grey(0, 128, 255)
    ),
    "TIFF, grey, 16 bits, 0 is white": (
        tiff("<", [16], 0, words("<", 0, 0x8000, 0xFFFF), 3), grey(255, 127, 0)
    ),
    "TIFF, grey, 8 bits, 0 is white": (
        tiff("<", [8], 0, b"\x00\x80\xff", 3), grey(255, 127, 0)
    ),
    "TIFF, colours, 16 bits": (
        tiff(">", [16] * 3, 2, words(">", 0xFFFF, 0x8000, 0x00FF), 1), [(255, 128, 0)]
    ),
    "TIFF, CMYK": (
        tiff("<", [8] * 4, 5, bytes([0, 0, 0, 0, 0, 0, 0, 255, 255, 0, 0, 0]), 3),
        [(255, 255, 255), (0, 0, 0), (0, 255, 255)],
    ),
    "TIFF, grey and alpha": (
        tiff("<", [8] * 2, 1, bytes([0, 0, 0, 128]), 2, extra=2), grey(255, 127)
    ),
    # Already multiplied: 0 of 127 is black, 127 of 128 nearly white.
    "TIFF, grey and alpha, multiplied": (
        tiff("<", [8] * 2, 1, bytes([0, 0, 0, 128, 127, 128, 9, 255]), 4, extra=1),
        grey(255, 127, 254, 9),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_files_keep_their_brightness(name: str) -> None:
    content, expected = FILES[name]
    if "multiplied" in name and "La" not in {mode for mode, _ in OPEN_INFO.values()}:
        pytest.skip("this Pillow does not open it")
    picture = open_picture(content)
    assert picture.mode == "RGB"
    assert [picture.getpixel((x, 0)) for x in range(picture.width)] == expected


def test_16_bits_of_grey_are_answered_as_8(tmp_path: Path) -> None:
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    pictures = []
    for mode in (levels.astype(np.uint8), levels * 257):
        stream = io.BytesIO()
        Image.fromarray(mode).save(stream, "PNG")
        pictures.append(open_picture(stream.getvalue()).tobytes())
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_every_order_of_bytes(mode: str) -> None:
    picture = Image.new(mode, (2, 1))
    picture.putpixel((0, 0), 0x80FF)
    picture.putpixel((1, 0), 0x01FF)
    rgb = to_rgb(picture)
    assert [rgb.getpixel((x, 0)) for x in range(2)] == grey(0x80, 1)


def test_every_level_mixes_with_white_by_every_alpha() -> None:
    levels, alpha = np.divmod(np.arange(1 << 16, dtype=np.uint32).reshape(256, 256), 256)
    expected = np.round((levels * alpha + 255.0 * (255 - alpha)) / 255).astype(np.uint8)
    for mode in ("LA", "RGBA", "PA"):
        bands = [levels] * (len(mode) - 1) + [alpha]
        stored = np.stack(bands, axis=-1).astype(np.uint8)
        if mode == "PA":
            picture = Image.fromarray(stored[..., :1].repeat(3, -1)).convert("L")
            palette = picture.convert("P")
            palette.putpalette([i // 3 for i in range(768)])
            picture = Image.merge("PA", (palette, Image.fromarray(stored[..., 1])))
            picture.putpalette([i // 3 for i in range(768)])
        else:
            picture = Image.fromarray(stored)
        assert picture.mode == mode
        np.testing.assert_array_equal(np.asarray(to_rgb(picture))[..., 0], expected, err_msg=mode)


def test_what_is_already_multiplied_with_its_alpha() -> None:
    picture = Image.frombytes("RGBa", (3, 1), bytes([0, 0, 0, 0, 64, 32, 0, 64, 200, 0, 0, 100]))
    rgb = to_rgb(picture)
    expected = [(255, 255, 255), (255, 223, 191), (255, 155, 155)]  # the last is no such pixel
    assert [rgb.getpixel((x, 0)) for x in range(3)] == expected


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("1", 255, (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("RGBX", (1, 2, 3, 0), (1, 2, 3)),
        ("CMYK", (0, 255, 0, 55), (200, 0, 200)),
        ("YCbCr", (77, 128, 128), (77, 77, 77)),
        ("HSV", (0, 255, 200), (200, 0, 0)),
        # From the definition of CIE L*a*b* (D50) and sRGB, not from Pillow.
        ("LAB", (255, 128, 128), (255, 255, 255)),
        ("LAB", (0, 128, 128), (0, 0, 0)),
        ("LAB", (125, 164, 163), (180, 90, 60)),
        ("LAB", (137, 128, 128), (128, 128, 128)),
    ],
)
def test_pictures_that_a_caller_made(
    mode: str, value: int | tuple[int, ...], expected: Pixel
) -> None:
    picture = Image.new(mode, (3, 2), value)
    seen = np.asarray(to_rgb(picture), dtype=int)
    tolerance = 2 if mode == "LAB" else 0  # its 256 levels are not those of RGB
    assert np.abs(seen - expected).max() <= tolerance, seen[0, 0]
    strips = np.frombuffer(b"".join(rgb_strips(picture)), np.uint8)  # the engine's and
    np.testing.assert_array_equal(strips.reshape(2, 3, 3), seen)
    pixels = (preprocess(picture, 1)[0, :, 0, 0].numpy() + 1) * 127.5  # the reference's way
    np.testing.assert_allclose(pixels, seen[0, 0], atol=1e-3)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_levels_without_a_range_are_refused(mode: str) -> None:
    stream = io.BytesIO()
    Image.new(mode, (2, 2), 7).save(stream, "TIFF")
    for see in (lambda: to_rgb(Image.new(mode, (2, 2))), lambda: open_picture(stream.getvalue())):
        with pytest.raises(PictureError, match=rf"32 bits \(mode {mode}\).*save it with 8 or 16"):
            see()


def test_jpegs_of_cmyk_are_not_inverted() -> None:
    """Adobe's programs store the inverse, and say so with a marker."""
    stream = io.BytesIO()
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(stream, "JPEG", quality=95)
    assert b"Adobe" in stream.getvalue()[:200]
    red, green, blue = open_picture(stream.getvalue()).getpixel((8, 8))
    assert red > 245 and green < 10 and blue < 10


def test_a_picture_that_needs_nothing_is_not_copied() -> None:
    picture = Image.new("RGB", (3, 3))
    assert to_rgb(picture) is picture


def test_strips_are_the_whole_picture() -> None:
    """More than one strip is converted, the last one a part."""
    noise = np.random.default_rng(0).integers(0, 256, (701, 3001, 4), dtype=np.uint8)
    alpha = noise[..., 3:].astype(np.uint32)
    expected = (noise[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
    np.testing.assert_array_equal(np.asarray(to_rgb(Image.fromarray(noise))), expected)
