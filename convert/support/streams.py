"""The streams of a command: whatever they can hold, and whoever listens.

A terminal may know ASCII only, names of files may be no text, a reader such as `head` may end
early, and a command may be started with its streams closed.
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
    """Opens streams that are closed, to nowhere; what one cannot encode is escaped from now on.

    A descriptor that is closed would be the next file's that is opened: then what is meant for the
    screen would go into that file.
    """
    for descriptor, (name, mode) in enumerate(_STREAMS):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest number free
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def flush() -> None:
    """Brings to the streams what is left for them.

    Raises:
        BrokenPipeError: a reader has ended.
        OSError: what stdout is kept in is full.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def abandon() -> None:
    """Lets go of what a stream does not take, so that Python says nothing of it at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with suppress(OSError):  # a stream without a descriptor
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)


def tell(text: str) -> None:
    """Prints a line on stderr, if anybody listens."""
    with suppress(OSError):
        print(text, file=sys.stderr)


def tell_trace() -> None:
    """Prints on stderr where the exception that is handled comes from."""
    tell(traceback.format_exc().rstrip("\n"))


def print_json(value: Any, *, indent: int | None = None) -> None:
    """Prints a value on stdout as JSON, which it is in every encoding."""
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    print(json_text(value, indent=indent, encoding=encoding), flush=True)
