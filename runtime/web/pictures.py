"""Pictures of the chats: the original file of each, and a small copy for the screen."""

from __future__ import annotations

import re
import uuid
from pathlib import Path
from typing import Any

from PIL import Image

from convert.support.whole_file import check_replaceable
from runtime.inputs.picture import open_picture

_NAME = re.compile(r"[0-9a-f-]{36}")
_SMALL = ".jpg"
_PREVIEW = 1280  # pixels of the longer side: shown large, too
_KEPT_PIXELS = 25_000_000  # 100 MB: a larger picture is decoded again for each question


class Pictures:
    """A folder of pictures. From any thread; a picture's id is known once it is whole."""

    def __init__(self, folder: Path) -> None:
        """Makes the folder."""
        folder.mkdir(mode=0o700, exist_ok=True)
        self._folder = folder
        self._latest: tuple[str, Image.Image] | None = None

    def partial(self) -> Path:
        """Returns a path for a picture that is being uploaded."""
        return self._folder / f"{uuid.uuid4()}.partial"

    def take(self, partial: Path) -> dict[str, Any]:
        """Stores an uploaded picture; returns its id, width and height.

        Raises:
            PictureError: the format is not supported; the file is removed.
        """
        name = partial.stem
        try:
            picture = open_picture(partial, name="")
            _preview(picture).save(self.small(name), "JPEG", quality=88)
            check_replaceable(self._folder / name)
            partial.rename(self._folder / name)
        except BaseException:
            partial.unlink(missing_ok=True)
            self.small(name).unlink(missing_ok=True)
            raise
        self._remember(name, picture)
        return {"id": name, "width": picture.width, "height": picture.height}

    def has(self, name: str) -> bool:
        """Says whether there is a picture of this id."""
        return bool(_NAME.fullmatch(name)) and (self._folder / name).is_file()

    def small(self, name: str) -> Path:
        """Returns the file for the screen."""
        return self._folder / (name + _SMALL)

    def open(self, name: str) -> Image.Image:
        """Decodes a picture whole; the latest is remembered, since it is asked about again."""
        if self._latest is not None and self._latest[0] == name:
            return self._latest[1]
        self._latest = None  # before the next one takes memory
        picture = open_picture(self._folder / name, name="")
        self._remember(name, picture)
        return picture

    def keep_only(self, used: set[str]) -> None:
        """Removes the pictures that no chat shows."""
        for path in self._folder.iterdir():
            name = path.name.partition(".")[0]
            if name not in used and _NAME.fullmatch(name) and not path.is_dir():
                path.unlink()

    def _remember(self, name: str, picture: Image.Image) -> None:
        is_small = picture.width * picture.height <= _KEPT_PIXELS
        self._latest = (name, picture) if is_small else None


def _preview(picture: Image.Image) -> Image.Image:
    """Returns a small copy; of a large picture without a second large one."""
    scale = min(1.0, _PREVIEW / max(picture.size))
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
