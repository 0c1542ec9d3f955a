"""Robust standard streams for every command.

A terminal may be limited to ASCII, file names may hold bytes that do not decode, a reader such as
`head` may exit early, and a command may be started with its streams closed.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from contextlib import suppress
from typing import Any

from convert.support.json_text import json_text

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))  # by descriptor


def set_up() -> None:
    """Opens closed streams on the null device, and escapes what a stream cannot encode.

    The descriptor of a closed stream would be reused for the next file opened, and text meant for
    the screen would be written into that file.
    """
    for descriptor, (name, mode) in enumerate(_STREAMS):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(
                os.open(os.devnull, os.O_RDWR), True
            )  # takes the lowest free descriptor
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def flush() -> None:
    """Flushes stdout and stderr.

    Raises:
        BrokenPipeError: the reader has exited.
        OSError: the disk behind stdout is full.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def abandon() -> None:
    """Discards output that a stream does not accept, so that Python does not report it at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with suppress(OSError):  # the stream has no descriptor
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)


def tell(text: str) -> None:
    """Prints a line on stderr, and ignores a stderr that is closed."""
    with suppress(OSError):
        print(text, file=sys.stderr)


def tell_trace() -> None:
    """Prints the traceback of the exception being handled on stderr."""
    tell(traceback.format_exc().rstrip("\n"))


def print_json(value: Any, *, indent: int | None = None) -> None:
    """Prints a value on stdout as JSON, escaped where the stream's encoding requires it."""
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    print(json_text(value, indent=indent, encoding=encoding), flush=True)
