import argparse
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from convert import cli
from convert.bundle.errors import BundleError

HEAVY = ("torch", "tvm", "numpy", "onnx", "sentencepiece")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Makes `run` the only command's work: `minicpmv do`."""

    def install(run: Any) -> None:
        module = SimpleNamespace(
            NAME="do", HELP="does it", EXAMPLES=(), run=run, configure=lambda parser: None
        )
        monkeypatch.setitem(sys.modules, "tests.convert.a_command", module)  # type: ignore[arg-type]
        monkeypatch.setattr(cli, "COMMANDS", {"test": ("tests.convert.a_command",)})

    return install


def raising(error: BaseException) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        raise error

    return run


def test_a_command_decides_the_exit_code(command: Callable[[Any], None]) -> None:
    command(lambda args: 1)
    assert cli.main(["do"]) == 1


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (BundleError("b: torn;\n mend it"), 2, "BundleError: b: torn; mend it"),
        (FileNotFoundError(2, "No such file", "x"), 2, "FileNotFoundError: x: No such file"),
        (OSError(28, "No space left"), 2, "OSError: [Errno 28] No space left"),
        (MemoryError(), 2, "MemoryError"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_are_one_line(
    command: Callable[[Any], None],
    error: BaseException,
    code: int,
    line: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command(raising(error))
    assert cli.main(["do"]) == code
    assert capsys.readouterr().err == f"{line}\n"


def test_debug_shows_where(
    command: Callable[[Any], None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(raising(BundleError("torn")))
    assert cli.main(["do", "--debug"]) == 2
    shown = capsys.readouterr().err.splitlines()
    assert shown[0].startswith("Traceback")
    assert shown[-1] == "BundleError: torn"


def test_our_own_mistakes_show_where(
    command: Callable[[Any], None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(raising(KeyError("x")))
    assert cli.main(["do"]) == 2
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "please report it" in shown


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["convert"], ["info", "a", "b"]])
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: minicpmv" in capsys.readouterr().err


def test_help_imports_nothing_heavy_and_lists_all_commands() -> None:
    script = (
        "import sys\nfrom convert.cli import main\n"
        "try: main(['--help'])\n"
        f"except SystemExit: print([name for name in {HEAVY} if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout
    lines = shown.decode().splitlines()
    names = [line.split()[0] for line in lines if re.match("    [a-z]", line)]
    assert names[:3] == ["convert", "verify", "chat"]
    assert len(names) == len(set(names)) == len([*chain(*cli.COMMANDS.values())])
    assert lines[-1] == "[]"


@pytest.mark.parametrize(("users", "policy"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_openmp_s_threads_sleep_while_they_wait(users: str | None, policy: str) -> None:
    """By what OpenMP itself says; what the user has set stays."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environment |= {"OMP_DISPLAY_ENV": "true"}
    environment |= {} if users is None else {"OMP_WAIT_POLICY": users}
    command = [sys.executable, "-m", "convert.cli", "info", "demo"]
    told = subprocess.run(command, env=environment, capture_output=True, check=True).stderr.decode()
    found = re.findall(r"OMP_WAIT_POLICY *= *'?(\w+)", told)
    assert found and set(found) == {policy}


def test_a_closed_pipe_is_quiet() -> None:
    config = Path(__file__).resolve().parents[2] / "configs" / "model" / "minicpm-v-1.0.json"
    command = [sys.executable, "-m", "convert.cli", "info", str(config), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE


def test_log_messages_are_plain_lines() -> None:
    script = (
        "import logging, sys, types\nfrom convert import cli\n"
        "def run(args):\n"
        "    logging.getLogger('convert.x').info('kept [it]')\n"
        "    logging.getLogger('convert.x').warning('mind')\n"
        "    logging.getLogger('elsewhere').info('hidden')\n"
        "    return 0\n"
        "sys.modules['a'] = types.SimpleNamespace(\n"
        "    NAME='do', HELP='', EXAMPLES=(), run=run, configure=lambda parser: None)\n"
        "cli.COMMANDS = {'test': ('a',)}\ncli.main(['do'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stderr.decode() == "kept [it]\nwarning: mind\n"
