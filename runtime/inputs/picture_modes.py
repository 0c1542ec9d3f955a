"""Pictures of every mode as RGB: brightness is kept, what is transparent stands on white."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageCms

from runtime.inputs.picture_format import PictureError

_STRIP_PIXELS = 1 << 20  # converted at once: steps in between take little memory
_WHITE = (255, 255, 255)
_NO_RANGE = ("I", "F")
_PREMULTIPLIED = ("La", "RGBa")


def to_rgb(picture: Image.Image) -> Image.Image:
    """Returns a picture as RGB: itself if it is, else a new one.

    Of 16 bits the upper 8 count, as Pillow has it with colours. A level c with opacity a becomes
    (c * a + 255 * (255 - a)) / 255, to the nearest; `PictureStrips.java` does the same.

    Raises:
        PictureError: its levels have no range.
    """
    if picture.mode == "RGB" and not picture.has_transparency_data:
        return picture
    if picture.mode in _NO_RANGE:
        raise PictureError(
            f"its levels have 32 bits (mode {picture.mode}) and nothing says which are black and "
            "white; save it with 8 or 16 bits"
        )
    width, height = picture.size
    result = Image.new("RGB", picture.size)
    rows = max(1, _STRIP_PIXELS // max(1, width))
    for top in range(0, height, rows):
        strip = picture.crop((0, top, width, min(top + rows, height)))
        result.paste(_convert(strip), (0, top))
    return result


def _convert(strip: Image.Image) -> Image.Image:
    if strip.mode.startswith("I;16"):
        return _from_16_bits(strip)
    if strip.mode == "LAB":
        colours = ImageCms.applyTransform(strip, _lab_to_srgb())
        assert colours is not None, "nothing is converted in place"
        return colours
    if strip.mode in _PREMULTIPLIED:
        *bands, alpha = strip.split()
        white = ImageChops.invert(alpha)  # its share is what the colours leave
        return Image.merge("RGB", [ImageChops.add(band, white) for band in (bands * 3)[:3]])
    if not strip.has_transparency_data:
        return strip.convert("RGB")
    rgba = strip.convert("RGBA")
    return _on_white(rgba.convert("RGB"), rgba.getchannel("A"))


def _from_16_bits(strip: Image.Image) -> Image.Image:
    levels = np.asarray(strip)  # whatever the mode's byte order
    grey = Image.fromarray((levels >> 8).astype(np.uint8)).convert("RGB")
    if not strip.has_transparency_data:
        return grey
    opaque = levels != strip.info["transparency"]
    return _on_white(grey, Image.fromarray(opaque.astype(np.uint8) * 255))


def _on_white(colours: Image.Image, alpha: Image.Image) -> Image.Image:
    white = Image.new("RGB", colours.size, _WHITE)
    white.paste(colours, mask=alpha)  # rounds to the nearest
    return white


@lru_cache(maxsize=1)
def _lab_to_srgb() -> ImageCms.ImageCmsTransform:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, srgb, "LAB", "RGB")
