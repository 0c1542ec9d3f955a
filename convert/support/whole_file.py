"""A file that appears whole or not at all: written next to its final path, then renamed."""

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
    """The path of an output file is taken by something other than a regular file."""


def is_partial(path: Path) -> bool:
    """Tells whether a name is that of a file that a killed process left half written."""
    return _PARTIAL.fullmatch(path.name) is not None


def check_replaceable(path: Path) -> Path:
    """Returns the file that writing to a path creates or replaces; symbolic links are followed.

    Raises:
        OutputFileError: it is a device, pipe, socket or folder, or a link to a missing file.
    """
    try:
        require_regular(path)
        return Path(os.path.realpath(path))
    except FileNotFoundError:
        if path.is_symlink():
            raise OutputFileError(
                f"{path}: a link to a missing file; remove it, or choose another name"
            ) from None
        return path
    except NotRegularError as error:
        raise OutputFileError(
            f"{path}: {error.strerror} to replace, or an unused name; choose another"
        ) from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path; its file replaces `path` at the end of the `with` block.

    Permissions and owner of an existing file are kept, and a symbolic link stays one. If the block
    raises, nothing changes.

    Raises:
        OutputFileError: see `check_replaceable`.
    """
    name = f".{path.name[:40]}.{secrets.token_hex(4)}.partial"
    partial = check_replaceable(path).with_name(name)
    try:
        yield partial
        target = check_replaceable(path)  # it may have changed meanwhile
        _take_rights(partial, target)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)  # leaves no garbage on a disk that is full


def _take_rights(partial: Path, target: Path) -> None:
    """Gives a file the permissions of the one it replaces, and its owner if that is allowed."""
    try:
        about = target.stat()
    except FileNotFoundError:
        return
    made = partial.stat()
    if (about.st_uid, about.st_gid) != (made.st_uid, made.st_gid):
        with suppress(PermissionError):
            os.chown(partial, about.st_uid, about.st_gid)
    partial.chmod(stat.S_IMODE(about.st_mode))
