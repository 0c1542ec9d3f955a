"""Pictures for the test of Android's decoders, with the pixels that Pillow decodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from runtime.inputs.picture import open_picture
from runtime.inputs.picture_file import write_picture_file

_SIZE = (37, 23)  # no multiple of a JPEG block
_LARGE = (2100, 2300)  # more than one strip of 16 MiB
_ORIENTATION = 0x0112  # in EXIF


def write_pictures(folder: Path) -> None:
    """Writes each picture as `NAME`, and its upright RGB pixels as `NAME.pixels`."""
    folder.mkdir()
    noise = Image.effect_noise(_SIZE, 90)
    colours = Image.merge("RGB", [Image.effect_noise(_SIZE, 90) for _ in range(3)])
    levels, alpha = np.divmod(np.arange(1 << 16).reshape(256, 256), 256)
    clear = np.stack([levels, 255 - levels, alpha, alpha], -1).astype(np.uint8)
    grey = np.stack([levels, alpha], -1).astype(np.uint8)
    x, y = np.meshgrid(np.arange(_LARGE[0]), np.arange(_LARGE[1]))
    large = Image.fromarray(np.stack([x & 255, y & 255, (x + y) >> 5], -1).astype(np.uint8))

    colours.save(folder / "full.jpg", quality=90, subsampling=0)
    colours.save(folder / "halved.jpg", quality=90, subsampling=2)
    colours.save(folder / "progressive.jpg", progressive=True)
    noise.save(folder / "grey.jpg")
    for number in range(1, 9):
        exif = Image.Exif()
        exif[_ORIENTATION] = number
        colours.save(folder / f"turned-{number}.jpg", exif=exif, subsampling=0)
    large.save(folder / "large-turned.jpg", exif=exif)  # 8: a quarter turn
    large.save(folder / "large.png", compress_level=1)
    colours.save(folder / "colours.png")
    noise.save(folder / "grey.png")
    noise.convert("1").save(folder / "bits.png")
    colours.quantize(32).save(folder / "palette.png")
    Image.fromarray(clear).save(folder / "clear.png")
    Image.fromarray(grey).save(folder / "clear-grey.png")
    Image.fromarray(clear).save(folder / "clear.webp", lossless=True, exact=True)
    colours.save(folder / "lossy.webp", quality=80)
    colours.save(folder / "colours.bmp")
    for path in list(folder.iterdir()):
        write_picture_file(path.with_name(f"{path.name}.pixels"), open_picture(path))
