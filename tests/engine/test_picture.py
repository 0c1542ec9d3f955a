"""The engine resizes bit-exactly like Pillow, in little memory, and refuses bad files."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.inputs.picture import preprocess
from runtime.inputs.picture_file import HEADER, MAGIC, VERSION, write_picture_file
from tests.engine.components import ComponentError, Components
from tests.support.compare import Record

ENGINE = Path(__file__).resolve().parents[2] / "runtime" / "engine"
SIZES = [
    *((1, 1), (1, 2), (2, 1), (1, 7), (3, 3), (5, 2), (1, 3000), (3000, 1), (2, 4001)),
    *((447, 448), (448, 449), (448, 448), (448, 100), (100, 448), (224, 224), (223, 225)),
    *((896, 896), (897, 895), (640, 480), (1000, 333), (333, 1000), (1999, 31), (50, 2500)),
]
MEMORY_LIMIT = 50 * 2**20  # bytes beyond the picture's own


def random_picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise, so that every rounding shows; with black and white, so that results are clipped."""
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    levels[rng.random((height, width)) < 0.3] = 0
    levels[rng.random((height, width)) < 0.3] = 255
    return Image.fromarray(levels)


def _resized(components: Components, path: Path, size: int) -> tuple[np.ndarray, np.ndarray]:
    reply = components.call("picture", path, size)
    count = 3 * size * size
    levels = np.frombuffer(reply[:count], np.uint8).reshape(size, size, 3)
    return levels, np.frombuffer(reply[count:], "<f4").reshape(3, size, size)


def _columns_first(picture: Image.Image, size: int) -> np.ndarray:
    """Resizes with Pillow in two calls: since 13.0, one call starts with a tall picture's rows."""
    wide = picture.resize((size, picture.height), Image.Resampling.BICUBIC)
    return np.asarray(wide.resize((size, size), Image.Resampling.BICUBIC))


def _assert_same(components: Components, picture: Image.Image, path: Path, size: int) -> None:
    write_picture_file(path, picture)
    levels, pixels = _resized(components, path, size)
    expected = _columns_first(picture, size)
    difference = np.abs(levels.astype(int) - expected)
    assert difference.max() == 0, f"{picture.size} to {size}: {difference.max()} levels apart"
    np.testing.assert_array_equal(pixels, preprocess(picture, size)[0].numpy())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("image_size", [56, 448])
def test_awkward_sizes(
    components: Components, tmp_path: Path, size: tuple[int, int], image_size: int
) -> None:
    _assert_same(components, random_picture(*size), tmp_path / "picture", image_size)


def test_random_sizes(components: Components, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for seed in range(60):
        width, height = (int(2 ** rng.uniform(0, 10)) for _ in range(2))
        size = int(rng.integers(1, 100))
        _assert_same(components, random_picture(width, height, seed), tmp_path / "p", size)


@pytest.mark.parametrize("shape", [(1, 200_000), (600_000, 2), (900_000, 1)])
def test_very_long_pictures(components: Components, tmp_path: Path, shape: tuple[int, int]) -> None:
    """So wide that the weights are computed for a few columns at a time."""
    _assert_same(components, random_picture(*shape), tmp_path / "picture", 56)


def test_48_megapixels(components: Components, tmp_path: Path, record_property: Record) -> None:
    part = np.asarray(random_picture(1000, 750))
    picture = Image.fromarray(np.tile(part, (8, 8, 1)))
    assert picture.size == (8000, 6000)
    _assert_same(components, picture, tmp_path / "picture", 448)
    peak = int(components.call("peak")) * 1024
    beyond = peak - (tmp_path / "picture").stat().st_size
    record_property("48 MP, memory beyond the picture's own, MiB", round(beyond / 2**20, 1))
    assert beyond < MEMORY_LIMIT


def test_a_resize_can_be_cancelled(components: Components, tmp_path: Path) -> None:
    write_picture_file(tmp_path / "picture", random_picture(300, 300))
    assert components.call("picture", tmp_path / "picture", 56, "cancel") == b"cancelled"
    _assert_same(components, random_picture(30, 300), tmp_path / "picture", 56)


def _file(width: int, height: int, body: int, **header: int | bytes) -> bytes:
    fields = {"magic": MAGIC, "version": VERSION, "width": width, "height": height, "zero": 0}
    return HEADER.pack(*(fields | header).values()) + bytes(body)


BAD_FILES = {
    "empty": (b"", "too short"),
    "half a header": (_file(1, 1, 3)[:12], "too short"),
    "a header alone": (_file(1, 1, 0), "1 x 1 pixels do not match 0 bytes"),
    "another magic": (_file(1, 1, 3, magic=b"MCPMVRGC"), "not a file of decoded pixels"),
    "a PNG": (b"\x89PNG\r\n\x1a\n" + bytes(100), "not a file of decoded pixels"),
    "a later version": (_file(1, 1, 3, version=2), "version 2; expected 1"),
    "no columns": (_file(0, 1, 3), "0 x 1 pixels; expected at least one"),
    "no rows": (_file(1, 0, 3), "1 x 0 pixels; expected at least one"),
    "no pixels": (_file(0, 0, 1), "0 x 0 pixels; expected at least one"),
    "reserved": (_file(1, 1, 3, zero=1), "reserved"),
    "one byte short": (_file(7, 5, 104), "7 x 5 pixels do not match 104 bytes"),
    "one byte long": (_file(7, 5, 106), "7 x 5 pixels do not match 106 bytes"),
    "a row short": (_file(7, 5, 84), "truncated"),
    "a product beyond 32 bits": (_file(2**16, 2**16, 3), "do not match 3 bytes"),
    "a product beyond 64 bits": (_file(2**32 - 1, 2**32 - 1, 3), "do not match 3 bytes"),
    # 3 * width * height is 2^64 + 3.
    "a product that wraps": (_file(3_074_457_347, 2_000_000_000, 3), "do not match 3 bytes"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_refused(components: Components, tmp_path: Path, name: str) -> None:
    data, reason = BAD_FILES[name]
    path = tmp_path / "picture"
    path.write_bytes(data)
    with pytest.raises(ComponentError, match=rf"^invalid_picture: {path}: .*{reason}"):
        components.call("picture", path, 56)
    _assert_same(components, random_picture(5, 5), path, 56)  # the next request works


def test_missing_files_are_refused(components: Components, tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(ComponentError, match=r"^invalid_picture: "):
            components.call("picture", path, 56)


def test_both_sides_name_the_same_format() -> None:
    header = (ENGINE / "picture_file.h").read_text("utf-8")
    assert f'kPictureMagic[] = "{MAGIC.decode()}"' in header
    assert f"kPictureVersion = {VERSION};" in header
    assert f"kPictureHeaderBytes = {HEADER.size};" in header


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1"])
def test_any_mode_is_written_as_rgb(tmp_path: Path, mode: str) -> None:
    picture = random_picture(31, 17).convert(mode)
    write_picture_file(tmp_path / "picture", picture)
    data = (tmp_path / "picture").read_bytes()
    assert struct.unpack("<8sIIII", data[:24]) == (MAGIC, VERSION, 31, 17, 0)
    assert data[24:] == picture.convert("RGB").tobytes()


def test_a_large_picture_is_written_in_strips(tmp_path: Path) -> None:
    picture = random_picture(1500, 2001)  # two strips and a bit
    write_picture_file(tmp_path / "picture", picture)
    assert (tmp_path / "picture").read_bytes()[24:] == picture.tobytes()
