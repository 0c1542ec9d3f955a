"""Pictures of the chats: each as it came, and a small one for the screen."""

from __future__ import annotations

import io
import re
import uuid
import warnings
from pathlib import Path
from typing import Any

from PIL import Image

from quantize.errors import PictureError
from runtime.picture import open_picture

LIMIT = 200 << 20  # bytes of a file; more than any camera writes
_NAME = re.compile(r"[0-9a-f-]{36}")
_SMALL = ".jpg"
_PREVIEW = 640  # pixels of the longer side
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "TIFF")  # MPO: the JPEG of many phones
_HEIC = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")  # at byte 8
_ADVICE = "choose a JPEG, PNG or WebP"


class Pictures:
    """A folder of pictures. From any thread; a picture's id is known once it is whole."""

    def __init__(self, folder: Path) -> None:
        """Makes the folder."""
        folder.mkdir(mode=0o700, exist_ok=True)
        self._folder = folder
        self._latest: tuple[str, Image.Image] | None = None

    def partial(self) -> Path:
        """Returns where a picture that is still coming is written."""
        return self._folder / f"{uuid.uuid4()}.partial"

    def take(self, partial: Path) -> dict[str, Any]:
        """Keeps a picture that came whole; returns its id, width and height.

        Raises:
            PictureError: it is none that is taken; nothing is left of it.
        """
        name = partial.stem
        try:
            picture = open_upload(partial.read_bytes())
            _preview(picture).save(self.small(name), "JPEG", quality=88)
            partial.rename(self._folder / name)
        except BaseException:
            partial.unlink(missing_ok=True)
            self.small(name).unlink(missing_ok=True)
            raise
        self._latest = name, picture
        return {"id": name, "width": picture.width, "height": picture.height}

    def has(self, name: str) -> bool:
        """Says whether there is a picture of this id."""
        return bool(_NAME.fullmatch(name)) and (self._folder / name).is_file()

    def small(self, name: str) -> Path:
        """Returns the file for the screen."""
        return self._folder / (name + _SMALL)

    def open(self, name: str) -> Image.Image:
        """Decodes a picture whole; the latest is remembered, since it is asked about again."""
        if self._latest is None or self._latest[0] != name:
            self._latest = name, open_upload((self._folder / name).read_bytes())
        return self._latest[1]

    def keep_only(self, used: set[str]) -> None:
        """Removes all that no chat shows."""
        for path in self._folder.iterdir():
            if path.name.partition(".")[0] not in used:
                path.unlink()


def _preview(picture: Image.Image) -> Image.Image:
    """Returns a small copy; of a large picture without a second large one."""
    scale = min(1.0, _PREVIEW / max(picture.size))
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)


def open_upload(content: bytes) -> Image.Image:
    """Decodes a file of the formats that are taken.

    Raises:
        PictureError: it is none.
    """
    if content[4:8] == b"ftyp" and content[8:12] in _HEIC:
        raise PictureError(f"HEIC pictures cannot be decoded here; {_ADVICE}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes below the limit
            with Image.open(io.BytesIO(content)) as picture:
                kind = picture.format
    except Image.DecompressionBombError:
        kind = _FORMATS[0]  # `open_picture` says how large it may be
    except (OSError, ValueError, SyntaxError) as error:
        raise PictureError(f"this is not a picture that can be decoded; {_ADVICE}") from error
    if kind not in _FORMATS:
        raise PictureError(f"{kind} pictures are not taken; {_ADVICE}")
    return open_picture(content)
