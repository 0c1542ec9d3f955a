"""What commands with a model print where the terminal knows ASCII only, or nobody listens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.convert.support.test_streams import run_script

QUESTION = "这是什么？"


def script(*arguments: str) -> str:
    return f"import sys\nfrom convert import cli\nsys.exit(cli.main({list(arguments)!a}))"


@pytest.fixture
def named(bundle: Path, tmp_path: Path) -> str:
    """The bundle under a Chinese name."""
    link = tmp_path / "模型"
    link.symlink_to(bundle)
    return str(link)


@pytest.mark.parametrize("environment", ["ascii", "utf-8"])
def test_verify_ends_as_it_should(named: str, tmp_path: Path, environment: str) -> None:
    done = run_script(script("verify", named), tmp_path, environment=environment)
    assert done.returncode == 0, done.stderr
    assert b"passed" in done.stdout
    assert b"Traceback" not in done.stderr


def test_verify_without_a_reader(named: str, tmp_path: Path) -> None:
    for redirect, code in ((">&-", 0), ("| true; exit ${PIPESTATUS[0]}", 141)):
        done = run_script(script("verify", named), tmp_path, redirect)
        assert done.returncode == code, done.stderr
        assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["info", "", "--json"],
        ["verify", "", "--json"],
        ["bench", "", "--rounds", "1", "--json"],
        ["chat", "", "--prompt", QUESTION, "--max-new-tokens", "3", "--json"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_json_in_ascii_is_json(named: str, tmp_path: Path, arguments: list[str]) -> None:
    arguments = [named if argument == "" else argument for argument in arguments]
    done = run_script(script(*arguments), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    found = json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert isinstance(found, dict)


@pytest.mark.parametrize("name", ["info", "chat"])
def test_plain_words_in_ascii(named: str, tmp_path: Path, name: str) -> None:
    more = ["--prompt", QUESTION, "--max-new-tokens", "3"] if name == "chat" else []
    done = run_script(script(name, named, *more), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii() and done.stderr.isascii()
