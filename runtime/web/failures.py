"""Errors for the page: a code that the page explains, and a message."""

from __future__ import annotations

import errno
import logging

from convert.bundle.errors import BundleError
from convert.support.scratch import ScratchError
from quantize.errors import ToolkitError
from runtime.engine_client.client import EngineError
from runtime.engine_client.process import EngineDiedError
from runtime.engine_client.protocol import ErrorCode
from runtime.inputs.picture_format import PictureError
from runtime.inputs.prompt import PromptError

UNKNOWN, BUSY, NO_SPACE = "unknown", "busy", "no_space"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_CODES: tuple[tuple[type[BaseException], str], ...] = (
    (PictureError, ErrorCode.INVALID_PICTURE),
    (PromptError, ErrorCode.PROMPT_TOO_LONG),
    (BundleError, ErrorCode.INVALID_BUNDLE),
    (ToolkitError, UNKNOWN),
    (OSError, ErrorCode.FILE_ERROR),
    (MemoryError, ErrorCode.OUT_OF_MEMORY),
)

log = logging.getLogger(__name__)


class BusyError(ToolkitError):
    """Another job is running."""


class InvalidTextError(ToolkitError):
    """A text can neither be stored nor tokenized."""


def error_code(error: BaseException) -> str:
    """Returns the code by which the page explains an error; logs what is a mistake of ours."""
    for candidate in (error, error.__cause__):
        if isinstance(candidate, EngineError):
            return candidate.code
    if isinstance(error, EngineDiedError):
        return error.death.value
    if isinstance(error, BusyError):
        return BUSY
    if isinstance(error, InvalidTextError):
        return ErrorCode.INVALID_TEXT
    if isinstance(error, ScratchError) or (isinstance(error, OSError) and error.errno in _FULL):
        return NO_SPACE
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    log.error("a mistake of minicpmv", exc_info=error)
    return ErrorCode.INTERNAL
