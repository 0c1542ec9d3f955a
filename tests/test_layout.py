"""The limits on files and functions, which `CONTRIBUTING.md` states."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("android", "convert", "quantize", "runtime")
MOST_FILE_LINES = 500
MOST_FUNCTION_LINES = 60  # from `def` to the last line, without decorators


def too_long(source: str) -> Iterator[str]:
    """Yields what exceeds a limit in a file's text."""
    count = len(source.splitlines())
    if count > MOST_FILE_LINES:
        yield f"the file has {count} lines"
    if count <= MOST_FUNCTION_LINES:
        return
    nodes: list[ast.AST] = [ast.parse(source)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            count = node.end_lineno - node.lineno + 1
            if count > MOST_FUNCTION_LINES:
                yield f"{node.name} has {count} lines"
        # Functions stand in statements: expressions need no visit.
        nodes += (
            child
            for child in ast.iter_child_nodes(node)
            if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case)
        )


def test_no_file_and_no_function_is_too_long() -> None:
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(paths) > 100, "the product's code was not found"
    found = {str(path.relative_to(ROOT)): list(too_long(path.read_text("utf-8"))) for path in paths}
    assert {path: reasons for path, reasons in found.items() if reasons} == {}


@pytest.mark.parametrize("head", ["def", "async def"])
@pytest.mark.parametrize(("count", "limit"), [(60, []), (61, ["f has 61 lines"])])
def test_a_function_that_is_too_long_is_seen(head: str, count: int, limit: list[str]) -> None:
    body = "        pass\n" * (count - 1)
    assert list(too_long(f"class C:\n    @staticmethod\n    {head} f():\n{body}")) == limit


@pytest.mark.parametrize(("count", "limit"), [(500, []), (501, ["the file has 501 lines"])])
def test_a_file_that_is_too_long_is_seen(count: int, limit: list[str]) -> None:
    assert list(too_long("pass\n" * count)) == limit
