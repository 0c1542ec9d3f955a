"""Temporary folders, and clear errors when there is no space for them."""

from __future__ import annotations

import errno
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quantize.errors import ToolkitError

_LEAST_FREE = 2**20  # bytes; a disk with less free space counts as full
_SAYS_FULL = re.compile("no ?space ?left", re.IGNORECASE)


class ScratchError(ToolkitError):
    """The folder for temporary files is full or not writable."""


@contextmanager
def scratch_folder(prefix: str | None = None, parent: Path | None = None) -> Iterator[Path]:
    """Yields an empty folder that is removed afterwards.

    Args:
        prefix: of its name.
        parent: the folder to create it in; None: `$TMPDIR`, or the system's default.

    Raises:
        ScratchError: the folder cannot be created, or the block failed because it is full or gone.
    """
    try:
        made = tempfile.TemporaryDirectory(prefix=prefix, dir=parent)
    except OSError as error:
        raise _refusal(parent, error) from error
    with made as name:
        folder = Path(name)
        try:
            yield folder
        except ScratchError:
            raise  # from another scratch folder inside the block
        except (OSError, ToolkitError) as error:
            if _comes_from(folder, error):
                raise _refusal(parent, error) from error
            raise


def _comes_from(folder: Path, error: OSError | ToolkitError) -> bool:
    """Tells whether an error occurred because a folder is full, or gone."""
    is_full = folder.is_dir() and shutil.disk_usage(folder).free < _LEAST_FREE
    if isinstance(error, ToolkitError):  # from a program that writes there
        about = str(error)
        return is_full and (str(folder) in about or _SAYS_FULL.search(about) is not None)
    if isinstance(error.filename, str):
        return Path(error.filename).is_relative_to(folder)
    # A failed write names no file, and numpy's does not even carry an errno.
    return error.errno == errno.EDQUOT or (is_full and error.errno in (errno.ENOSPC, None))


def _refusal(parent: Path | None, error: OSError | ToolkitError) -> ScratchError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if parent is not None:
        return ScratchError(f"{parent}: cannot be written: {reason}; free some space")
    try:
        place = tempfile.gettempdir()
    except OSError:
        place = "there is no folder for temporary files"
    return ScratchError(
        f"{place}: no temporary file can be written: {reason}; free some space, or let the "
        "variable TMPDIR name another folder"
    )
