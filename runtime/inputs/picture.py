"""From a picture file to the vision encoder's pixels, as the original model does."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from convert.support.regular_file import open_regular, require_regular
from runtime.inputs.picture_format import START_BYTES, PictureError, picture_format
from runtime.inputs.picture_modes import to_rgb

if TYPE_CHECKING:
    from torch import Tensor

MAX_BYTES = 200 << 20  # of a file; more than any camera writes
MAX_PIXELS = 200_000_000  # no phone's camera takes more
# What the decoders of these take grows with the picture, too: up to 16 bytes a pixel.
_FEWER_PIXELS = {"WebP": 80_000_000, "progressive JPEG": 130_000_000, "TIFF": 130_000_000}
_PNG_BITS = 24  # where a PNG says how many a level has
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow warns of more than this, and refuses twice this


def open_picture(source: Path | bytes, *, name: str | None = None) -> Image.Image:
    """Decodes a picture to RGB: upright as its EXIF says, on white where it is transparent.

    Every command decodes with this. The first bytes say what a file is, and Pillow is held to that:
    for some formats it would start other programs.

    Args:
        source: a file, or its content.
        name: by which errors call it; by default a file's path.

    Raises:
        PictureError: no picture, of a format that is not taken, damaged, or too large.
    """
    if name is None and isinstance(source, Path):
        name = str(source)
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else _open_file(source) as stream:
            return _decode(stream)
    except PictureError as error:
        raise PictureError(f"{name}: {error}" if name else str(error)) from error


def preprocess(picture: Image.Image, image_size: int) -> Tensor:
    """Resizes to a square (aspect is not kept) and normalises: (1, 3, S, S) float32 in [-1, 1].

    Source: MiniCPM-V 1.0.
    """
    return normalise(resize(to_rgb(picture), (image_size, image_size)))


def resize(rgb: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resizes to (width, height), pixels, with PIL's bicubic filter, antialiased."""
    bicubic = Image.Resampling.BICUBIC
    # Columns first, then rows, each rounded to bytes: as every Pillow did when the model was made.
    # One call would begin with the rows of a tall picture since Pillow 13 (pull request 9549).
    return rgb.resize((size[0], rgb.height), bicubic).resize(size, bicubic)


def normalise(rgb: Image.Image) -> Tensor:
    """Maps levels to [-1, 1]: (1, 3, height, width) float32; mean and standard deviation 0.5."""
    import torch  # here, because the engine's clients need only the pictures: it takes seconds

    pixels = np.asarray(rgb, dtype=np.float32) / 255.0
    return torch.from_numpy((pixels - 0.5) / 0.5).permute(2, 0, 1).unsqueeze(0)


def _open_file(path: Path) -> BinaryIO:
    try:
        if require_regular(path).st_size > MAX_BYTES:
            raise PictureError(f"the file is larger than {MAX_BYTES >> 20} MiB")
        return open_regular(path)
    except FileNotFoundError as error:
        raise PictureError("no such file") from error
    except OSError as error:
        raise PictureError(f"cannot be read: {error.strerror or error}") from error


def _decode(stream: BinaryIO) -> Image.Image:
    """Decodes with one copy of the pixels in memory; two where they are turned or mixed."""
    start = stream.read(START_BYTES)
    kind = picture_format(start)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes below the limit, and of damaged metadata
            with Image.open(stream, formats=(kind,)) as picture:
                _check_size(picture, kind)
                if kind == "PNG":
                    _scale_transparency(picture, bits=start[_PNG_BITS])
                ImageOps.exif_transpose(picture, in_place=True)
                rgb = to_rgb(_full_range(picture))
                # Of WebP, Pillow would keep the decoder's pixels, too, while the picture lives.
                return rgb.copy() if rgb is picture and kind == "WebP" else rgb
    except PictureError:
        raise
    except Image.DecompressionBombError as error:
        raise PictureError(
            f"larger than the {MAX_PIXELS:,} pixels that are decoded: {error}"
        ) from error
    except MemoryError as error:
        raise PictureError("there is not enough memory to decode it") from error
    except UnidentifiedImageError as error:
        raise PictureError(f"not a {kind} that can be decoded: its header is damaged") from error
    except Exception as error:  # a damaged file leads Pillow's decoders to errors of many types
        reason = str(error) or type(error).__name__
        raise PictureError(f"not a {kind} that can be decoded: {reason}") from error


def _check_size(picture: Image.Image, kind: str) -> None:
    what = f"progressive {kind}" if "progressive" in picture.info else kind
    most = _FEWER_PIXELS.get(what, MAX_PIXELS)
    pixels = picture.width * picture.height
    if pixels > most:
        raise PictureError(
            f"has {pixels:,} pixels, larger than the {most:,} pixels that are decoded of a {what}: "
            "make it smaller, or save it as PNG"
        )


def _scale_transparency(picture: Image.Image, *, bits: int) -> None:
    """Brings the level that a PNG calls transparent to the scale of Pillow's pixels.

    Of colours with 16 bits Pillow keeps the upper 8: what differs in the others alone is
    transparent, too.
    """
    level = picture.info.get("transparency")
    if picture.mode == "L" and bits < 8 and level is not None:
        most = (1 << bits) - 1
        picture.info["transparency"] = (level & most) * 255 // most
    elif picture.mode == "RGB" and bits == 16 and level is not None:
        picture.info["transparency"] = tuple(part >> 8 for part in level)


def _full_range(picture: Image.Image) -> Image.Image:
    """Returns a TIFF's grey levels from black to white; Pillow leaves 12 bits, and negatives."""
    if not isinstance(picture, TiffImagePlugin.TiffImageFile) or picture.mode != "I;16":
        return picture
    levels = np.asarray(picture)
    bits = picture.tag_v2[TiffImagePlugin.BITSPERSAMPLE][0]
    levels = levels << (16 - bits)
    if picture.tag_v2[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] == 0:  # 0 is white
        levels = ~levels
    return Image.fromarray(levels)
