"""Files from the user: regular files are opened, anything else is refused before it can block.

Opening a named pipe waits for the other end, and reading a device may never end.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


class NotRegularError(OSError):
    """The path is not that of a regular file."""


def require_regular(path: str | Path) -> os.stat_result:
    """Checks a file that a library will open by its path; symbolic links are followed.

    Raises:
        OSError: it does not exist or is not a regular file; `strerror` says which.
    """
    try:
        about = os.stat(path)
    except ValueError as error:  # a NUL, or a lone surrogate
        raise NotRegularError(errno.EINVAL, "no file can have this name", str(path)) from error
    _check(about, path)
    return about


def open_regular(path: str | Path) -> BinaryIO:
    """Opens a regular file for reading bytes.

    Raises:
        OSError: it does not exist or is not a regular file; `strerror` says which.
    """
    require_regular(path)  # first: merely opening a device can have an effect
    return cast(BinaryIO, open(path, "rb", opener=_open_plain))


def read_regular(path: str | Path, limit: int | None = None) -> bytes:
    """Returns a regular file's content.

    Args:
        path: of the file.
        limit: the size in bytes above which a file is refused; None: no limit.

    Raises:
        OSError: it does not exist, is not a regular file, or is too large; `strerror` says which.
    """
    with open_regular(path) as file:
        content = file.read() if limit is None else file.read(limit + 1)
    if limit is not None and len(content) > limit:
        too_large = f"larger than the {limit:,} bytes allowed"
        raise NotRegularError(errno.EFBIG, too_large, str(path))
    return content


def _open_plain(path: str, flags: int) -> int:
    """Opens a file if it is still a regular one; it may have been replaced since the check."""
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check(os.fstat(descriptor), path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _check(about: os.stat_result, path: str | Path) -> None:
    if not stat.S_ISREG(about.st_mode):
        found = next((name for is_kind, name in _KINDS if is_kind(about.st_mode)), "no file")
        raise NotRegularError(errno.EINVAL, f"{found}; expected a regular file", str(path))
