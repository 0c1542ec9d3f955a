"""The app's reading of pictures from other programs, compared with Pillow."""

from __future__ import annotations

import io
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image, ImageOps, features
from PIL.PngImagePlugin import PngInfo

from android.build.tools import java
from runtime.inputs.picture import open_picture
from runtime.inputs.picture_format import TAKEN, PictureError
from tests.runtime.inputs.test_picture_format import REFUSED

SIZE = (12, 7)
HEADER_BYTES = 24  # of a picture file
PICTURE = Image.effect_noise(SIZE, 90).convert("RGB")
XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="{}"/></x:xmpmeta>'

Save = Callable[[int], bytes]


def dump_pictures(classpath: str, folder: Path, contents: list[bytes]) -> list[str]:
    """Returns the app's line for each picture; the files are named `0`, `1` and so on."""
    for i, content in enumerate(contents):
        (folder / str(i)).write_bytes(content)
    paths = [str(folder / str(i)) for i in range(len(contents))]
    command = [
        *java(),
        "-cp",
        classpath,
        "org.minicpmv.desktop.DumpPicture",
        *map(str, SIZE),
        *paths,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def exif(orientation: int, byte_order: str = "<") -> bytes:
    data = Image.Exif()
    data.endian = byte_order
    data[0x010F] = "a maker"
    data[0x0112] = orientation
    return data.tobytes()


def saved(kind: str, *, order: str = "<") -> Save:
    def save(orientation: int) -> bytes:
        stream = io.BytesIO()
        PICTURE.save(stream, kind, exif=exif(orientation, order))
        return stream.getvalue()

    return save


def with_xmp(kind: str) -> Save:
    def save(orientation: int) -> bytes:
        stream = io.BytesIO()
        PICTURE.save(stream, kind, xmp=XMP.format(orientation).encode())
        return stream.getvalue()

    return save


def png_text(*, compressed: bool) -> Save:
    def save(orientation: int) -> bytes:
        stream, info = io.BytesIO(), PngInfo()
        info.add_itxt("XML:com.adobe.xmp", XMP.format(orientation), zip=compressed)
        PICTURE.save(stream, "PNG", pnginfo=info)
        return stream.getvalue()

    return save


def png_profile(*, compressed: bool) -> Save:
    """ImageMagick's way to store EXIF from before PNG had a chunk for it."""

    def save(orientation: int) -> bytes:
        stream, info, data = io.BytesIO(), PngInfo(), exif(orientation)
        digits = "\n".join(data.hex()[i : i + 72] for i in range(0, 2 * len(data), 72))
        info.add_text("Raw profile type exif", f"\nexif\n{len(data):8}\n{digits}\n", compressed)
        PICTURE.save(stream, "PNG", pnginfo=info)
        return stream.getvalue()

    return save


def late_png(orientation: int) -> bytes:
    """EXIF after the pixels."""
    stream = io.BytesIO()
    PICTURE.save(stream, "PNG")
    png, chunk = stream.getvalue(), b"eXIf" + exif(orientation)
    end = len(png) - 12
    checked = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return png[:end] + checked + png[end:]


@pytest.mark.parametrize(
    ("kind", "save"),
    [
        ("JPEG", saved("JPEG")),
        ("JPEG", saved("JPEG", order=">")),
        ("JPEG", with_xmp("JPEG")),
        ("WEBP", saved("WEBP")),
        ("WEBP", with_xmp("WEBP")),
        ("PNG", saved("PNG")),
        ("PNG", late_png),
        ("PNG", png_text(compressed=False)),
        ("PNG", png_text(compressed=True)),
        ("PNG", png_profile(compressed=False)),
        ("PNG", png_profile(compressed=True)),
    ],
)
def test_pictures_are_upright_as_pillow_turns_them(
    java_classpath: str, tmp_path: Path, kind: str, save: Save
) -> None:
    numbers = range(10)  # 0 and 9 are invalid
    contents = [save(number) for number in numbers]
    read = [Image.open(io.BytesIO(content)).getexif().get(0x0112) for content in contents]
    assert read == list(numbers)  # Pillow finds it, too
    expected = [f"{kind} {number if 1 <= number <= 8 else 1}" for number in numbers]
    assert dump_pictures(java_classpath, tmp_path, contents) == expected
    if kind != "PNG":
        return
    for number, content in enumerate(contents):
        upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
        written = (tmp_path / f"{number}.pixels").read_bytes()
        width, height = struct.unpack_from("<II", written, 12)
        pixels = np.frombuffer(written, np.uint8, offset=HEADER_BYTES)
        assert_array_equal(pixels.reshape(height, width, 3), upright)


def test_transparency_is_mixed_with_white_as_in_python(java_classpath: str, tmp_path: Path) -> None:
    levels, alpha = np.divmod(np.arange(1 << 16).reshape(256, 256), 256)
    picture = Image.fromarray(np.stack([levels, 255 - levels, alpha, alpha], -1).astype(np.uint8))
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    assert dump_pictures(java_classpath, tmp_path, [stream.getvalue()]) == ["PNG 1"]
    written = (tmp_path / "0.pixels").read_bytes()[HEADER_BYTES:]
    assert written == open_picture(stream.getvalue()).tobytes()


def test_both_hosts_refuse_with_the_same_words(java_classpath: str, tmp_path: Path) -> None:
    contents = [*REFUSED.values(), b"", b"hello", b"\0\0\0\x18ftypisom"]
    said = []
    for content in contents:
        with pytest.raises(PictureError) as error:
            open_picture(content)
        said.append(str(error.value))
    assert dump_pictures(java_classpath, tmp_path, contents) == said


def test_both_hosts_know_the_same_formats(java_classpath: str, tmp_path: Path) -> None:
    contents = []
    for kind in TAKEN:
        stream = io.BytesIO()
        PICTURE.save(stream, kind)
        contents.append(stream.getvalue())
    expected = ["JPEG 1", "PNG 1", "WEBP 1", "BMP 1"]
    expected.append("TIFF pictures are not supported; choose a JPEG, PNG or WebP")
    assert TAKEN == ("JPEG", "PNG", "WebP", "BMP", "TIFF")
    assert dump_pictures(java_classpath, tmp_path, contents) == expected


def test_exif_counts_more_than_xmp(java_classpath: str, tmp_path: Path) -> None:
    stream = io.BytesIO()
    PICTURE.save(stream, "JPEG", exif=exif(6), xmp=XMP.format(3).encode())
    assert dump_pictures(java_classpath, tmp_path, [stream.getvalue()]) == ["JPEG 6"]


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow writes no AVIF")
def test_boxes_of_heif(java_classpath: str, tmp_path: Path) -> None:
    """Pillow writes the same boxes into AVIF as HEIC has; only the brand differs."""
    contents = []
    for number in range(1, 9):
        stream = io.BytesIO()
        PICTURE.save(stream, "AVIF", exif=exif(number))
        contents.append(stream.getvalue().replace(b"ftypavif", b"ftypmif1", 1))
    expected = [f"HEIC {number}" for number in range(1, 9)]
    assert dump_pictures(java_classpath, tmp_path, contents) == expected


def test_a_text_that_swells_is_not_waited_for(java_classpath: str, tmp_path: Path) -> None:
    stream, info = io.BytesIO(), PngInfo()
    info.add_itxt("XML:com.adobe.xmp", " " * (64 << 20), zip=True)
    PICTURE.save(stream, "PNG", pnginfo=info)
    assert dump_pictures(java_classpath, tmp_path, [stream.getvalue()]) == ["PNG 1"]
