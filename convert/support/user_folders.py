"""Where the user's cache, data and configuration are: as XDG says, on a Mac, too."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from platformdirs.unix import Unix

from convert.support.versions import TOOLKIT
from quantize.errors import ToolkitError


class UserFolderError(ToolkitError):
    """The user has no home."""


def user_folder(kind: Literal["cache", "config", "data"]) -> Path:
    """Returns the toolkit's folder in the user's caches, configuration or data.

    It may not exist yet. A relative `XDG_…_HOME` is ignored, as the standard has it.

    Raises:
        UserFolderError: neither `HOME` nor the user's entry in the password file names a home.
    """
    try:
        return Path(getattr(Unix(TOOLKIT), f"user_{kind}_path"))
    except RuntimeError as error:
        raise UserFolderError(str(error)) from error
