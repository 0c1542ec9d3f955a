"""Folders for temporary files, and what to do where there is no room for them."""

from __future__ import annotations

import errno
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quantize.errors import ToolkitError

_LEAST_FREE = 2**20  # bytes; a disk with less is full
_SAYS_FULL = re.compile("no ?space ?left", re.IGNORECASE)


class ScratchError(ToolkitError):
    """The folder for temporary files is full or takes none."""


@contextmanager
def scratch_folder(prefix: str | None = None, parent: Path | None = None) -> Iterator[Path]:
    """Gives an empty folder that is removed afterwards.

    Args:
        prefix: what its name begins with.
        parent: where it is; None takes the folder that TMPDIR names, or the system's.

    Raises:
        ScratchError: it cannot be made, or an error inside the block comes from it.
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
            raise  # of a folder inside the block
        except (OSError, ToolkitError) as error:
            if _comes_from(folder, error):
                raise _refusal(parent, error) from error
            raise


def _comes_from(folder: Path, error: OSError | ToolkitError) -> bool:
    """Says whether an error came up because a folder has no room, or is gone."""
    is_full = folder.is_dir() and shutil.disk_usage(folder).free < _LEAST_FREE
    if isinstance(error, ToolkitError):  # of a program that writes there
        about = str(error)
        return is_full and (str(folder) in about or _SAYS_FULL.search(about) is not None)
    if isinstance(error.filename, str):
        return Path(error.filename).is_relative_to(folder)
    # A write names no file, and numpy's not even the system's error.
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
