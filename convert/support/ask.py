"""Asks other programs what they are."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence

_SECONDS = 60.0  # for a program to say what it is


def ask(command: Sequence[str]) -> tuple[str, str | None]:
    """Runs a program; returns its output, and the problem if it does not start."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except OSError as error:
        return "", f"{command[0]} does not start: {error.strerror or error}"
    except subprocess.TimeoutExpired:
        return "", f"{command[0]} does not answer"
    return re.sub(r"\x1b\[[\d;]*m", "", done.stdout), None
