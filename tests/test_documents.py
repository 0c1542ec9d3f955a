"""Documents that cannot go stale: their links, command lines, help texts and sample output.

A block with `<!-- run -->` on the line before it is run; every line of output that it shows must
come in that order (white space aside, and other lines may stand between). With `<!-- run: decimals
vary -->` decimal fractions in the output are not compared; whole numbers are.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import platform
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path

import pytest

from convert import cli
from tests.support.documents import DECIMALS_VARY, ROOT, RUN, Block, Document, documents

DOCUMENTS = documents()
FOLDERS = ("android", "configs", "convert", "quantize", "runtime", "tests")
_IS_USAGE = re.compile(r"[\[|…]|\.\.\.")  # a form, not a command line
_OPTION = re.compile(r"(?<![\w-])(--?[a-z][a-z-]*)(?: ([\w.+-]+(?:\|[\w.+-]+)+))?")
_DECIMAL = re.compile(r"\d[\d,]*(?:\.\d+(?:e[+-]\d+)?|e[+-]\d+)")
by_name = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)


@cache
def parser() -> argparse.ArgumentParser:
    return cli.make_parser()


@cache
def commands() -> dict[str, argparse.ArgumentParser]:
    (found,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(found.choices)


def command_lines(document: Document) -> Iterator[tuple[str, str]]:
    """Gives a document's command lines, and where they stand."""
    for block in document.blocks():
        if block.language in ("", "sh", "bash"):
            for line, _ in block.commands():
                yield block.place, line
    for span in filter(None, document.spans()):
        yield document.name, span


def check_usage(line: str) -> None:
    """Checks a form such as `minicpmv bench DIR [--engine local|qemu]`: options and choices."""
    _, name, *_ = line.split()
    options = commands()[name]._option_string_actions
    for option, choices in _OPTION.findall(line):
        assert option in options, f"{name} has no {option}"
        wanted = options[option].choices
        if choices and wanted is not None:
            assert choices.split("|") == list(wanted), f"{name} {option} takes {wanted}"


@by_name
def test_command_lines_are_right(document: Document) -> None:
    """Commands exist, and so do their options and choices; modules, paths and make's targets."""
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    in_blocks = {line for block in document.blocks() for line, _ in block.commands()}
    for place, line in command_lines(document):
        words = line.split()
        if words[0] == "minicpmv" and words[1:] and words[1] != "COMMAND":
            if words[1].startswith("-"):
                assert words[1] in parser()._option_string_actions, (place, line)
            elif _IS_USAGE.search(line) or line not in in_blocks:
                assert words[1] in commands(), (place, line)
                check_usage(line)
            else:
                try:
                    parser().parse_args(shlex.split(line)[1:])
                except SystemExit as end:
                    assert end.code == 0, f"{place}: {line}"
        elif words[:2] == ["python", "-m"] and words[2].split(".")[0] in FOLDERS:
            assert importlib.util.find_spec(words[2]) is not None, (place, line)
        elif words[0] == "make" and words[1:]:
            assert set(words[1:]) <= set(targets), (place, line)


@by_name
def test_links_lead_somewhere(document: Document) -> None:
    known = {other.path: other.anchors() for other in DOCUMENTS}
    for link in document.links():
        name, _, anchor = link.partition("#")
        path = (document.path.parent / name).resolve() if name else document.path
        assert path.exists(), link
        assert not anchor or anchor in known[path], link


@by_name
def test_paths_exist(document: Document) -> None:
    """What stands between backticks and begins with one of our folders is there."""
    for span in document.spans():
        for word in span.split():
            if re.fullmatch(rf"(?:{'|'.join(FOLDERS)})/[\w./*-]+", word) and "NAME" not in word:
                assert list(ROOT.glob(word.rstrip("/"))), f"{document.name}: {word}"


def test_the_table_of_commands_is_the_parsers() -> None:
    readme = next(document for document in DOCUMENTS if document.name == "README.md")
    (table,) = (t for t in readme.tables() if t[0][0] == "command")
    helps = {name: text for line in parser().description.splitlines()
             for name, text in re.findall(r"^    (\w+) +(.*)$", line)}  # fmt: skip
    assert {row[0].strip("`"): row[1] for row in table[2:]} == helps
    assert [row[0].strip("`") for row in table[2:]] == list(helps)


def masked(line: str, block: Block) -> str:
    """Returns a line of output as it is compared."""
    text = _DECIMAL.sub("#", line) if block.marker == DECIMALS_VARY else line
    return " ".join(text.split())


def run(line: str) -> str:
    """Runs a command line of a document in this process; returns what it prints."""
    program, *words = shlex.split(line)
    assert program == "minicpmv", f"{line}: only minicpmv's commands are run"
    shown = io.StringIO()
    with redirect_stdout(shown), redirect_stderr(shown):
        try:
            code = cli.main(words)
        except SystemExit as end:  # --help, --version
            code = end.code
    assert code == 0, f"{line}: {shown.getvalue()}"
    return shown.getvalue()


def check_block(block: Block) -> None:
    """Runs a block and compares what it prints with what the document shows."""
    for line, expected in block.commands():
        printed = run(line)
        rest = iter([masked(shown, block) for shown in printed.splitlines()])
        missing = [want for want in expected if masked(want, block) not in rest]
        assert not missing, f"{block.place}: {line} prints no {missing}, or not there: {printed}"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like a fresh checkout to who types the commands."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


@pytest.mark.usefixtures("checkout")
@pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"),
    reason="the host engine is for Linux on x86-64",
)
def test_blocks_run_and_print_what_they_show() -> None:
    """README.md comes first: it makes the bundle that the others use."""
    marked = [b for d in DOCUMENTS for b in d.blocks() if b.marker in (RUN, DECIMALS_VARY)]
    assert any(block.place.startswith("README.md") for block in marked)
    for block in sorted(marked, key=lambda block: not block.place.startswith("README.md")):
        if block.language == "python":
            exec(compile(block.text, block.place, "exec"), {"__name__": "document"})
        else:
            check_block(block)


def test_comparing_notices() -> None:
    """Stale options, choices, output and links are found."""
    for line in ("minicpmv bench DIR [--speed]", "minicpmv chat --engine local|adb"):
        with pytest.raises(AssertionError):
            check_usage(line)
    text = (
        "# A b\n\n<!-- run -->\n```\n$ minicpmv --version\nminicpmv 0.0\n```\n[x](#a-b) [y](z.md)\n"
    )
    document = Document(ROOT / "made-up.md", text)
    (block,) = document.blocks()
    assert (block.marker, block.place, document.anchors()) == (RUN, "made-up.md:4", {"a-b"})
    assert document.links() == ["#a-b", "z.md"]
    with pytest.raises(AssertionError, match="prints no"):
        check_block(block)
    varying = Block("", "", "", DECIMALS_VARY)
    assert masked("4.35  MiB of 92", varying) == masked("4.4 MiB of 92", varying)
    assert masked("4.35 MiB of 92", varying) != masked("4.35 MiB of 93", varying)
    assert masked("4.6e-07 x", varying) == "# x"
