"""What every command does where a stream is closed, full, or knows few characters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from convert import cli
from convert.support.json_text import json_lines, json_text

TEXT = "MiniCPM 红 é 🟥 \udcff"
ENVIRONMENTS = {
    "utf-8": {"PYTHONIOENCODING": "utf-8"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1": {"PYTHONIOENCODING": "latin-1:strict"},
    "C": {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}
# A command that says a text in every way in which commands do.
SCRIPT = f"""
import logging, os, sys, time, types
from convert import cli
from convert.support import console, streams
TEXT = {TEXT!a}
def run(args):
    with open("file", "w") as file:
        assert file.fileno() > 2
    time.sleep(float(os.environ.get("WAIT", 0)))
    logging.getLogger("convert").warning(TEXT)
    console.results().print(TEXT, markup=False, soft_wrap=True)
    console.print_table(console.results(), [TEXT], [[TEXT]])
    print(TEXT)
    print(TEXT, file=sys.stderr)
    sys.stdin.read()
    streams.print_json({{TEXT: TEXT}})
    return 0
sys.modules["a"] = types.SimpleNamespace(
    NAME="do", HELP=TEXT, EXAMPLES=((TEXT, TEXT),), run=run, configure=lambda parser: 0
)
cli.COMMANDS = {{"test": ("a",)}}
sys.exit(cli.main())
"""


def run_script(
    script: str, folder: Path, redirect: str = "", environment: str = "ascii"
) -> subprocess.CompletedProcess[bytes]:
    """Runs a script in a shell with some streams led elsewhere."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "LC_", "LANG"))}
    root = str(Path(__file__).resolve().parents[3])
    more = {"PYTHONPATH": root, "SCRIPT": script, "PYTHON": sys.executable}
    command = f'"$PYTHON" -c "$SCRIPT" do {redirect}'
    return subprocess.run(
        ["bash", "-c", command],
        env=kept | more | ENVIRONMENTS[environment],
        cwd=folder,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_text_can_be_printed(tmp_path: Path, environment: str) -> None:
    done = run_script(SCRIPT, tmp_path, environment=environment)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr
    *lines, last = done.stdout.decode("latin-1").splitlines()
    assert json.loads(last.encode("latin-1")) == {TEXT: TEXT}
    assert len(lines) == 4
    for line in (*lines, *done.stderr.decode("latin-1").splitlines()):
        assert "MiniCPM" in line and "\\udcff" in line
    assert ("红".encode() in done.stdout) == (environment == "utf-8")


@pytest.mark.parametrize(
    ("redirect", "code"),
    [
        (">&-", 0),
        ("2>&-", 0),
        ("<&-", 0),
        (">&- 2>&- <&-", 0),
        (">/dev/full", 2),
        ("| true; exit ${PIPESTATUS[0]}", 141),
        ("2> >(exec true)", 141),
    ],
)
def test_streams_that_are_closed_or_full(
    tmp_path: Path, redirect: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that is meant for a stream goes into a file, and nothing but the error is said."""
    monkeypatch.setenv("WAIT", "0.3")  # till the reader has ended
    done = run_script(SCRIPT, tmp_path, redirect)
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr
    assert (tmp_path / "file").read_bytes() == b""
    if code == 2:
        assert done.stderr.endswith(b"OSError: [Errno 28] No space left on device\n")


# Each command with names that ASCII does not hold: where it stops, and its help.
COMMANDS = f"""
import os, sys
from convert import cli
PATH = os.fsdecode({TEXT.encode("utf-8", "surrogateescape")!r})  # as the shell gives it
COMMANDS = {{
    "convert": [PATH, "-o", PATH + "2"],
    "verify": [PATH, "--json"],
    "chat": [PATH, "--prompt", PATH],
    "apk": [PATH, "-o", PATH + "2"],
    "aar": [PATH, "-o", PATH + "2"],
    "harmony": [PATH, "-o", PATH + "2"],
    "sideload": [PATH],
    "bench": [PATH, "--json"],
    "eval": [PATH, "--benchmark", "mme", "--data", PATH],
    "serve": [PATH],
    "compare": [PATH, PATH + "2"],
    "info": [PATH],
    "synth": [PATH, "-o", PATH + "2"],
    "doctor": [PATH],
}}
def code(arguments):
    try:
        return cli.main(arguments)
    except SystemExit as end:
        return end.code
codes = {{name: (code([name, "--help"]), code([name, *more])) for name, more in COMMANDS.items()}}
with open("wrong", "w") as file:
    file.write(repr({{name: pair for name, pair in codes.items() if pair != (0, 2)}}))
"""


@pytest.mark.parametrize("redirect", ["", ">&- 2>&- <&-"])
@pytest.mark.parametrize("environment", ["ascii", "C"])
def test_every_command(tmp_path: Path, environment: str, redirect: str) -> None:
    done = run_script(COMMANDS, tmp_path, redirect, environment)
    assert (tmp_path / "wrong").read_text() == "{}", done.stderr
    assert b"Traceback" not in done.stderr


def test_the_table_has_every_command() -> None:
    names = {module.rpartition(".")[2] for step in cli.COMMANDS.values() for module in step}
    assert all(f'"{name}": [' in COMMANDS for name in names)


def test_json_that_any_encoding_holds() -> None:
    assert json_text({"a": "红"}) == '{"a": "红"}'
    for text, encoding in (("红", "ascii"), ("\ud800", "utf-8"), ("🟥", "latin-1"), ("é", "ascii")):
        encoded = json_text([text], encoding=encoding, indent=1)
        assert encoded.isascii() and json.loads(encoded) == [text]


def test_lines_of_json() -> None:
    content = b'\xef\xbb\xbf{"a": 1}\r\n\n \t\n"\xe2\x80\xa8\xc2\x85"\n[2]'
    assert list(json_lines(content)) == [
        (1, b'{"a": 1}'), (4, b'"\xe2\x80\xa8\xc2\x85"'), (5, b"[2]"),
    ]  # fmt: skip
    assert not list(json_lines(b""))
