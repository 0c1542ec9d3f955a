"""A file that appears whole or not at all: written beside its place, then renamed."""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from convert.support.regular_file import NotRegularError, require_regular
from quantize.errors import ToolkitError

_PARTIAL = re.compile(r"\..*\.[0-9a-f]{8}\.partial", re.DOTALL)


class OutputFileError(ToolkitError):
    """Something else than a file stands where a file is to be written."""


def is_partial(path: Path) -> bool:
    """Says whether a name is that of a file that a killed program left half written."""
    return _PARTIAL.fullmatch(path.name) is not None


def check_replaceable(path: Path) -> Path:
    """Returns the file that writing a path makes or replaces: a link's is the one it leads to.

    Raises:
        OutputFileError: a device, a pipe, a socket, a folder, or a link that leads nowhere.
    """
    try:
        require_regular(path)
        return Path(os.path.realpath(path))
    except FileNotFoundError:
        if path.is_symlink():
            raise OutputFileError(
                f"{path}: a link that leads nowhere; remove it, or choose another name"
            ) from None
        return path
    except NotRegularError as error:
        raise OutputFileError(
            f"{path}: {error.strerror} to replace, or a name that is free; choose another"
        ) from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a path to write to, whose file takes its place at the end of the `with` block.

    A file that stands there keeps its permissions and its owner; a link stays a link. Left by an
    error, the block changes nothing.

    Raises:
        OutputFileError: see `check_replaceable`.
    """
    name = f".{path.name[:40]}.{secrets.token_hex(4)}.partial"
    partial = check_replaceable(path).with_name(name)
    try:
        yield partial
        target = check_replaceable(path)  # another may stand there by now
        _take_rights(partial, target)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)  # the full disk that stopped it is not made fuller


def _take_rights(partial: Path, target: Path) -> None:
    """Gives a file the permissions of the one that it replaces, and if it may, the owner."""
    try:
        about = target.stat()
    except FileNotFoundError:
        return
    made = partial.stat()
    if (about.st_uid, about.st_gid) != (made.st_uid, made.st_gid):
        with suppress(PermissionError):
            os.chown(partial, about.st_uid, about.st_gid)
    partial.chmod(stat.S_IMODE(about.st_mode))
