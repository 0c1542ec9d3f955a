"""From a picture file to the vision encoder's pixels, as the original model does."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from quantize.errors import PictureError

MAX_PIXELS = 200_000_000  # no phone's camera takes more
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow warns of more than this, and refuses twice this


def open_picture(source: Path | bytes) -> Image.Image:
    """Decodes a picture to RGB, turned upright as its EXIF says.

    Raises:
        PictureError: no picture, a damaged one, or more than `MAX_PIXELS`.
    """
    name = str(source) if isinstance(source, Path) else "picture"
    try:
        stream = source.open("rb") if isinstance(source, Path) else io.BytesIO(source)
        with stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes below the limit, and of damaged metadata
            with Image.open(stream) as picture:
                return ImageOps.exif_transpose(picture).convert("RGB")
    except FileNotFoundError as error:
        raise PictureError(f"{name}: no such file") from error
    except Image.DecompressionBombError as error:
        raise PictureError(
            f"{name}: larger than the {MAX_PIXELS:,} pixels that are decoded: {error}"
        ) from error
    except Exception as error:  # a damaged file leads Pillow's decoders to errors of many types
        raise PictureError(f"{name}: not a picture that can be decoded: {error}") from error


def preprocess(picture: Image.Image, image_size: int) -> Tensor:
    """Resizes to a square (aspect is not kept) and normalises: (1, 3, S, S) float32 in [-1, 1].

    PIL's bicubic filter, antialiased; mean and standard deviation 0.5. Source: MiniCPM-V 1.0.
    """
    bicubic = Image.Resampling.BICUBIC
    # Columns first, then rows, each rounded to bytes: as every Pillow did when the model was made.
    # One call would begin with the rows of a tall picture since Pillow 13 (pull request 9549).
    wide = picture.convert("RGB").resize((image_size, picture.height), bicubic)
    resized = wide.resize((image_size, image_size), bicubic)
    pixels = np.asarray(resized, dtype=np.float32) / 255.0
    return torch.from_numpy((pixels - 0.5) / 0.5).permute(2, 0, 1).unsqueeze(0)
