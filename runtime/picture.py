"""From a picture file to the vision encoder's pixels, as the original model does."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from quantize.errors import PictureError

MAX_PIXELS = 200_000_000  # more than any phone's camera takes


def open_picture(source: Path | bytes) -> Image.Image:
    """Decodes a picture to RGB, turned upright as its EXIF says.

    Raises:
        PictureError: no picture, a damaged one, or more than `MAX_PIXELS`.
    """
    name = str(source) if isinstance(source, Path) else "picture"
    try:
        stream = source.open("rb") if isinstance(source, Path) else io.BytesIO(source)
        with stream, warnings.catch_warnings():
            # Pillow warns where we refuse: the limit below is ours.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(stream) as picture:
                width, height = picture.size
                if width * height > MAX_PIXELS:
                    raise PictureError(
                        f"{name}: {width} x {height} pixels; at most {MAX_PIXELS:,} are decoded"
                    )
                upright = ImageOps.exif_transpose(picture)
                return upright.convert("RGB")
    except FileNotFoundError as error:
        raise PictureError(f"{name}: no such file") from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"{name}: {error}; at most {MAX_PIXELS:,} pixels are decoded") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise PictureError(f"{name}: not a picture that can be decoded: {error}") from error


def preprocess(picture: Image.Image, image_size: int) -> Tensor:
    """Resizes to a square (aspect is not kept) and normalises: (1, 3, S, S) float32 in [-1, 1].

    PIL's bicubic filter, antialiased; mean and standard deviation 0.5. Source: MiniCPM-V 1.0.
    """
    resized = picture.convert("RGB").resize((image_size, image_size), Image.Resampling.BICUBIC)
    pixels = np.asarray(resized, dtype=np.float32) / 255.0
    return torch.from_numpy((pixels - 0.5) / 0.5).permute(2, 0, 1).unsqueeze(0)
