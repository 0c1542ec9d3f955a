"""Markdown of any text: what comes from somebody else's files stays text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

# Punctuation that could begin something: emphasis, code, a link, a tag, a formula, a mention; an
# underscore inside a word cannot. Then what makes a bare address a link.
_SPECIAL = re.compile(
    r"[\\`*\[\]<>&~$#!@]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.", re.IGNORECASE
)
_INVISIBLE = ("C", "Zl", "Zp")  # control, formatting, surrogates; separators of lines


def text(value: str) -> str:
    """Returns Markdown that shows a text as it is, on one line."""
    return _SPECIAL.sub(lambda found: f"\\{found[0]}", _one_line(value))


def code(value: str) -> str:
    """Returns Markdown that shows a text as code, on one line."""
    line = _one_line(value)
    if "\\|" in line:  # parsers disagree on this in a table, where code knows no backslash
        return text(line)
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    fence = "`" * (longest + 1)
    # One space on either side is dropped; it keeps the text's own backticks from the fence.
    inner = f" {line} " if not line or line[0] in "` " or line[-1] in "` " else line
    return f"{fence}{inner}{fence}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table of cells that are Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    # A bar ends a cell even inside code, unless there is a backslash before it.
    cells = ((cell.replace("|", "\\|") for cell in row) for row in lines)
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _one_line(value: str) -> str:
    """Replaces whatever cannot be seen, and would break a line or turn the text around."""
    blank = " ".join(value.split())
    return "".join("\ufffd" if unicodedata.category(c).startswith(_INVISIBLE) else c for c in blank)
