"""Markdown of any text: a parser shows what was meant, and nothing else."""

from __future__ import annotations

import re

import pytest
from markdown_it import MarkdownIt

from convert.support.markdown import code, table, text
from tests.support.cards import HOSTILE

PARSER = MarkdownIt("commonmark").enable("table")


def shown(value: str) -> str:
    """What is to be seen of a text: one line, and a sign for what is invisible."""
    return re.sub(r"[\x00-\x1f\x7f\u202a-\u202e\ud800-\udfff]", "\ufffd", " ".join(value.split()))


@pytest.mark.parametrize("value", [*HOSTILE, "", " a ", "`", "a`", "``` x", "q4f16_1", "__a__"])
@pytest.mark.parametrize("kind", [text, code])
def test_a_text_is_shown_and_does_nothing(value: str, kind: type) -> None:
    blocks = PARSER.parse(f"a {kind(value)} b")
    assert [block.type for block in blocks] == ["paragraph_open", "inline", "paragraph_close"]
    inside = blocks[1].children or []
    assert {token.type for token in inside} <= {"text", "text_special", "code_inline"}
    found = "".join(token.content for token in inside)
    assert " ".join(found.split()) == f"a {shown(value)} b".replace("  ", " ")
    if kind is text:  # the hub makes links of these by themselves
        assert not re.search(r"(?<!\\):(?=//)|www(?<!\\)\.|(?<!\\)@", kind(value))


def test_ordinary_names_stay_as_they_are() -> None:
    for name in ("MiniCPM-V", "q4f16_1", "模型 2.0", "KL divergence, nats", "1.2 (1 to 2)", "a/b"):
        assert text(name) == name and code(name) == f"`{name}`"


def test_a_table_keeps_its_columns() -> None:
    rows = [[kind(value), "1"] for value in HOSTILE for kind in (text, code)]
    blocks = PARSER.parse(table(["a|b", "c"], rows))
    kinds = [block.type for block in blocks]
    assert (kinds.count("table_open"), kinds.count("tr_open")) == (1, 1 + len(rows))
    cells = ["".join(t.content for t in b.children or []) for b in blocks if b.type == "inline"]
    expected = [cell for value in HOSTILE for _ in (text, code) for cell in (shown(value), "1")]
    assert cells == ["a|b", "c", *expected]
