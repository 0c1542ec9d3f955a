"""Decoding and preprocessing, against PIL's bicubic filter written down in numpy."""

from __future__ import annotations

import hashlib
import io
import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from runtime.inputs.picture import MAX_BYTES, MAX_PIXELS, open_picture, preprocess
from runtime.inputs.picture_format import PictureError


def _noise(width: int, height: int, channels: int = 3) -> np.ndarray:
    shape = (height, width, channels)
    return np.random.default_rng(width).integers(0, 256, shape, dtype=np.uint8)


def _encoded(picture: Image.Image, format: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, format, **options)
    return out.getvalue()


def _png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def _filter(length: int, size: int) -> np.ndarray:
    """Weights (size, length) of PIL's bicubic (a = -0.5), widened when it shrinks a picture."""
    scale = length / size
    support = max(scale, 1.0)
    weights = np.zeros((size, length))
    for i in range(size):
        center = (i + 0.5) * scale
        first, last = int(center - 2 * support + 0.5), int(center + 2 * support + 0.5)
        taps = np.arange(max(first, 0), min(last, length))
        d = np.abs((taps + 0.5 - center) / support)
        near, far = 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
        weights[i, taps] = np.where(d < 1, near, np.where(d < 2, far, 0))
        weights[i] /= weights[i].sum()
    return weights


def _resize(picture: np.ndarray, size: int) -> np.ndarray:
    """Resizes (h, w, 3) bytes as PIL does: columns first, rounded to bytes in between."""
    height, width, _ = picture.shape
    wide = np.einsum("xw,hwc->hxc", _filter(width, size), picture.astype(np.float64))
    wide = np.clip(np.floor(wide + 0.5), 0, 255)
    both = np.einsum("yh,hxc->yxc", _filter(height, size), wide)
    return np.clip(np.floor(both + 0.5), 0, 255)


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (640, 480, 168),
        (480, 640, 168),
        (37, 211, 168),
        (100, 500, 56),
        (168, 168, 168),
        (500, 100, 56),
        (90, 90, 448),
        (1, 1, 56),
    ],
)
def test_preprocess_equals_a_bicubic_of_our_own(width: int, height: int, size: int) -> None:
    picture = _noise(width, height)
    pixels = preprocess(Image.fromarray(picture), size)
    assert pixels.shape == (1, 3, size, size) and pixels.dtype == torch.float32
    levels = (pixels[0].permute(1, 2, 0).double().numpy() + 1) * 127.5
    assert np.abs(levels - levels.round()).max() < 1e-4, "no whole levels"
    difference = np.abs(levels.round() - _resize(picture, size))
    # PIL's weights are fixed-point numbers of 22 bits, which may round a level the other way.
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.001


@pytest.mark.parametrize(
    ("width", "height", "digest"),
    [
        (640, 480, "4c0fd7760d"),
        (37, 211, "5ab552808d"),
        (211, 37, "b559513efe"),
        (100, 500, "725ea691bc"),
        (168, 300, "4a8cce4b3a"),
    ],
)
def test_preprocess_gives_pillow_11s_bytes(width: int, height: int, digest: str) -> None:
    """The digests are of one `resize((168, 168), BICUBIC)` of the same noise in Pillow 11.3.0."""
    pixels = preprocess(Image.fromarray(_noise(width, height)), 168)
    levels = (pixels[0].permute(1, 2, 0).numpy() + 1) * 127.5
    assert hashlib.md5(levels.round().astype(np.uint8).tobytes()).hexdigest()[:10] == digest


def test_values_span_minus_one_to_one() -> None:
    picture = np.zeros((4, 4, 3), dtype=np.uint8)
    picture[:, :, 0], picture[:, :, 1] = 255, 51
    red, green, blue = preprocess(Image.fromarray(picture), 4)[0]
    assert torch.equal(red, torch.ones(4, 4)) and torch.equal(blue, -torch.ones(4, 4))
    torch.testing.assert_close(green, torch.full((4, 4), -0.6))


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_a_picture_upright(orientation: int, format: str) -> None:
    upright = _noise(6, 4)
    # What a camera stores for each orientation, by the EXIF standard.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    data = _encoded(Image.fromarray(np.ascontiguousarray(stored)), format, exif=exif, **options)
    assert np.array_equal(np.asarray(open_picture(data)), upright)


def test_one_pixel() -> None:
    picture = open_picture(_encoded(Image.new("RGB", (1, 1), (255, 0, 255))))
    red, green, _ = preprocess(picture, 56)[0]
    assert red.eq(1).all() and green.eq(-1).all()


def test_a_path_and_its_bytes_are_the_same_picture(tmp_path: Path) -> None:
    path = tmp_path / "a picture.jpg"
    path.write_bytes(_encoded(Image.fromarray(_noise(20, 10)), "JPEG"))
    assert open_picture(path).tobytes() == open_picture(path.read_bytes()).tobytes()


@pytest.mark.parametrize(
    ("format", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})]
)
def test_the_first_frame_of_an_animation_is_taken(format: str, options: dict[str, bool]) -> None:
    frames = [Image.new("RGB", (5, 5), colour) for colour in ("red", "lime", "blue")]
    data = _encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert open_picture(data).tobytes() == frames[0].tobytes()


@pytest.mark.parametrize(
    ("width", "height"), [(100_000, 100_000), (2**31 - 1, 1), (1, MAX_PIXELS + 1)]
)
def test_a_huge_picture_is_refused_before_it_is_decoded(width: int, height: int) -> None:
    with pytest.raises(PictureError, match="larger than the 200,000,000 pixels") as error:
        open_picture(_png_header(width, height))
    assert f"{width * height}" in str(error.value)


def test_a_picture_of_200_megapixels_is_not_too_large() -> None:
    """Its header passes; that its data is missing is found out by decoding."""
    with pytest.raises(PictureError, match="not a PNG that can be decoded"):
        open_picture(_png_header(16_320, 12_240))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "this is not a picture that can be decoded; choose a JPEG, PNG or WebP"),
        (b"hello", "this is not a picture that can be decoded; choose a JPEG, PNG or WebP"),
        (b"\x89PNG\r\n\x1a\n", "not a PNG that can be decoded: its header is damaged"),
        (b"\xff\xd8\xff", "not a JPEG that can be decoded: its header is damaged"),
    ],
)
def test_no_picture_is_refused(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "note.png"
    path.write_bytes(data)
    with pytest.raises(PictureError) as error:
        open_picture(path)
    assert str(error.value) == f"{path}: {said}"


def test_a_truncated_picture_is_refused() -> None:
    data = _encoded(Image.fromarray(_noise(50, 50)))
    with pytest.raises(PictureError, match=r"^not a PNG that can be decoded: .+"):
        open_picture(data[: len(data) // 2])


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"none\.png: no such file"):
        open_picture(tmp_path / "none.png")
    with pytest.raises(PictureError, match="a folder; expected a regular file"):
        open_picture(tmp_path)


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    with pytest.raises(PictureError, match=r"pipe\.png: cannot be read: a named pipe"):
        open_picture(pipe)
    with pytest.raises(PictureError, match="a device; expected a regular file"):
        open_picture(Path("/dev/zero"))


def test_a_file_larger_than_any_camera_writes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "long.bmp"
    with path.open("wb") as file:
        file.write(b"BM")
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(PictureError, match=r"long\.bmp: the file is larger than 200 MiB"):
        open_picture(path)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "TIFF", "WEBP"])
@pytest.mark.filterwarnings("error")
def test_damaged_files_are_decoded_or_refused(format: str) -> None:
    """Whatever bytes are wrong, the only error is ours, and what is decoded can be resized."""
    choose = random.Random(0)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a note"
    options = {"exif": exif} if format in ("JPEG", "PNG", "TIFF", "WEBP") else {}
    try:
        whole = _encoded(Image.fromarray(_noise(19, 13)), format, **options)
    except (KeyError, OSError) as error:
        pytest.skip(f"this Pillow cannot write {format}: {error}")
    for _ in range(150):
        data = bytearray(whole[: choose.choice([len(whole), choose.randrange(1, len(whole))])])
        for _ in range(choose.randrange(1, 6)):
            data[choose.randrange(min(len(data), choose.choice([40, 120, len(data)])))] = (
                choose.randrange(256)
            )
        try:
            picture = open_picture(bytes(data))
        except PictureError:
            continue
        if picture.width * picture.height < 1_000_000:
            assert preprocess(picture, 28).isfinite().all()
