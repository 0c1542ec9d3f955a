"""A model card as the hub reads it: YAML in front, then Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

# In names and texts of somebody else's files; each must be shown, and do nothing.
HOSTILE = (
    "`a` ``b`` | c <script>alert(1)</script> [d](http://e.example) ![f](g) *h* _i_ &amp; $j$",
    "x\n---\nlicense: mit\n---\n# Heading\n\n- item\n\n```sh\nls\n```\n| a | b |\n| --- | --- |",
    "https://e.example www.e.example me@e.example \u202eright to left\u202c \x1b[31m \udcff",
    "--> <!-- x",
    "key: [value, 'other'] # comment\r\n? - &anchor *alias !!python/object:os.system {}",
    "|" * 3 + "\\|\\" + "`",
)


@dataclass(frozen=True)
class ReadCard:
    """What the two parsers make of a card."""

    front: dict[str, Any]
    tokens: list[Token]  # of blocks, with those of lines as children

    @staticmethod
    def of(folder: Path) -> ReadCard:
        """Reads a folder's README.md."""
        text = (folder / "README.md").read_text("utf-8")
        begin, front, body = text.split("---\n", 2)
        assert begin == ""
        found = yaml.safe_load(front)
        assert isinstance(found, dict)
        return ReadCard(found, MarkdownIt("commonmark").enable("table").parse(body))

    @property
    def headings(self) -> list[str]:
        """The text of each heading."""
        pairs = zip(self.tokens, self.tokens[1:], strict=False)
        return [_shown(after) for token, after in pairs if token.type == "heading_open"]

    @property
    def links(self) -> list[str]:
        """The address of each link and picture."""
        found = (token.attrs.get("href", token.attrs.get("src")) for token in self.all())
        return [str(address) for address in found if address is not None]

    @property
    def html(self) -> list[str]:
        """What a browser would be given as it is."""
        return [t.content.strip() for t in self.all() if t.type in ("html_block", "html_inline")]

    @property
    def fences(self) -> list[str]:
        """The content of each block of code."""
        return [t.content for t in self.tokens if t.type in ("fence", "code_block")]

    @property
    def kinds(self) -> set[str]:
        """Every kind of element."""
        return {token.type for token in self.all()}

    @property
    def rows(self) -> list[list[str]]:
        """The cells of all tables, as they are shown."""
        found: list[list[str]] = []
        for token, after in zip(self.tokens, self.tokens[1:], strict=False):
            if token.type == "tr_open":
                found.append([])
            elif token.type in ("td_open", "th_open"):
                found[-1].append(_shown(after))
        return found

    def all(self) -> Iterator[Token]:
        """Yields blocks and what is inside their lines."""
        for token in self.tokens:
            yield token
            yield from token.children or ()


def _shown(line: Token) -> str:
    return "".join(token.content for token in line.children or ())
