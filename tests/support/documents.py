"""The project's Markdown files, as far as tests need to understand them."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUN = "run"  # the marker before a block that a test runs
DECIMALS_VARY = "run: decimals vary"  # the same; decimal fractions in its output are not compared
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARKER = re.compile(r"<!-- (.*) -->\n\n?\Z")
_SPAN = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    place: str  # path and line
    language: str
    text: str
    marker: str  # of the comment right before it, or empty

    def commands(self) -> list[tuple[str, list[str]]]:
        """Returns the command lines, each with the lines of output that are shown below it.

        Where a line begins with `$ `, those are the commands and all else is output; else every
        line is a command. An indented line continues the one before.
        """
        is_session = any(line.startswith("$ ") for line in self.text.splitlines())
        found: list[tuple[str, list[str]]] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                found.append((line.removeprefix("$ "), []))
            elif is_session:
                found[-1][1].append(line)
            elif line.startswith(" ") and found:
                found[-1] = (f"{found[-1][0]} {line.strip()}", [])
            elif line.strip():
                found.append((line, []))
        return found


@dataclass(frozen=True)
class Document:
    """A Markdown file."""

    path: Path
    text: str

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    def blocks(self) -> list[Block]:
        """Returns the fenced blocks."""
        found = []
        for match in _FENCE.finditer(self.text):
            before = self.text[: match.start()]
            marker = _MARKER.search(before)
            line = before.count("\n") + 1
            language, text = match.groups()
            found.append(Block(f"{self.name}:{line}", language, text, marker[1] if marker else ""))
        return found

    def spans(self) -> list[str]:
        """Returns what stands between single backticks, on one line each."""
        return [" ".join(span.split()) for span in _SPAN.findall(_FENCE.sub("", self.text))]

    def links(self) -> list[str]:
        """Returns the targets of links and pictures that are not addresses of the web."""
        targets = _LINK.findall(_SPAN.sub("", _FENCE.sub("", self.text)))
        return [t for t in targets if not re.match(r"https?:|mailto:", t)]

    def anchors(self) -> set[str]:
        """Returns the names that headings get on GitHub."""
        headings = _HEADING.findall(_FENCE.sub("", self.text))
        return {re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in headings}

    def tables(self) -> list[list[list[str]]]:
        """Returns the tables: rows of cells, without the line below the head."""
        tables = re.findall(r"(?:^\|.*\|\n)+", self.text, re.MULTILINE)
        return [
            [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]
            for table in tables
        ]


@cache
def documents() -> tuple[Document, ...]:
    """Returns all Markdown files that belong to the project."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z", "*.md"],
        capture_output=True,
        check=True,
    )
    paths = sorted(ROOT / name for name in listed.stdout.decode().split("\0") if name)
    return tuple(Document(p, p.read_text("utf-8")) for p in paths if p.exists())
