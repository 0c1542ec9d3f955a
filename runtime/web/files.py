"""Where the page's host keeps what outlives it, and how it writes there."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from convert.support.json_text import json_text
from convert.support.user_folders import user_folder
from convert.support.whole_file import whole_file
from quantize.errors import ConfigError


def data_folder() -> Path:
    """Returns the folder for chats, pictures, settings and the log; it may not exist yet."""
    return user_folder("data") / "web"


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Makes a folder that only this user can read, and keeps other servers out of it.

    Raises:
        ConfigError: another server uses it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"{folder}: another `minicpmv chat --web` uses it; open the address that it "
                "printed, end it, or set XDG_DATA_HOME to another folder"
            ) from error
        yield


def write_json(path: Path, value: Any) -> None:
    """Writes a file that is never there by half."""
    with whole_file(path) as partial:
        partial.write_text(json_text(value), "utf-8")
