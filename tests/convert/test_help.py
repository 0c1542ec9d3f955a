"""`--help` of every command, and what a shell completes."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from convert import cli

COLUMNS = 100  # of what is not wrapped to the terminal's width: overview and examples


def parsers() -> dict[str, argparse.ArgumentParser]:
    found = [a for a in cli.make_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    assert len(found) == 1
    return dict(found[0].choices)


COMMANDS = parsers()


@pytest.mark.parametrize("command", COMMANDS)
def test_two_examples_that_parse(command: str) -> None:
    epilog = COMMANDS[command].epilog
    assert epilog is not None
    lines = [line.strip() for line in epilog.splitlines() if line.startswith("    ")]
    assert len(lines) == 2
    for line in lines:
        program, *words = shlex.split(line)
        assert (program, words[0]) == ("minicpmv", command)
        cli.make_parser().parse_args(words)
    assert max(map(len, epilog.splitlines())) <= COLUMNS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained_in_a_group(command: str) -> None:
    for group in COMMANDS[command]._action_groups:
        shown = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
        assert all(action.help for action in shown), group.title
        if group.title == "options":
            assert [a.option_strings[-1] for a in shown] == ["--help", "--debug"]


def test_the_overview_lists_commands_by_step() -> None:
    shown = cli.make_parser().format_help()
    assert "positional" not in shown
    assert max(map(len, shown.splitlines())) <= COLUMNS
    places = [shown.index(f"\n{step}:\n") for step in cli.COMMANDS]
    assert places == sorted(places)


def test_which_commands_use_the_demo() -> None:
    """The overview's last paragraph and the commands' own help say the same."""
    optional = {
        name
        for name, parser in COMMANDS.items()
        if any(
            "(default: the demo checkpoint)" in (action.help or "") for action in parser._actions
        )
    }
    said = cli.make_parser().epilog or ""
    assert optional == {name for name in COMMANDS if f"`{name}`" in said}


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("minicpmv co", {"convert", "compare"}),
        ("minicpmv convert --target", {"--target", "--target-size"}),
        ("minicpmv chat --engine ", {"local", "qemu", "adb", "hdc", "reference"}),
    ],
)
def test_a_shell_completes(tmp_path: Path, line: str, completed: set[str]) -> None:
    """As the function asks that `register-python-argcomplete minicpmv` gives to bash."""
    asked = {
        cli.COMPLETION: "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line.encode())),
        "COMP_TYPE": "9",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "answer"),
    }
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from convert.cli import main; sys.exit(main())"],
        env=os.environ | asked,
        capture_output=True,
        check=True,
    )
    assert done.stdout == done.stderr == b""
    assert {word.strip() for word in (tmp_path / "answer").read_text().split()} == completed
