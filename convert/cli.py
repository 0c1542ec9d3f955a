"""The command line `minicpmv`: runs a command, and reports an error in one line."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Protocol, cast

from convert.support import streams
from convert.support.versions import VERSION
from quantize.errors import ToolkitError

# The user's steps, each with the modules of its commands. These import heavy packages in `run`.
COMMANDS = {
    "convert a model and check the result": (
        "convert.commands.convert",
        "runtime.commands.verify",
    ),
    "chat on this PC": (
        "runtime.commands.chat",
        "runtime.commands.serve",
    ),
    "run it on a phone": (
        "android.build.apk",
        "android.build.aar",
        "android.harmony.harmony",
        "android.device.sideload",
    ),
    "measure": (
        "runtime.commands.bench",
        "runtime.commands.eval",
        "runtime.commands.compare",
    ),
    "inspect and prepare": (
        "convert.commands.info",
        "convert.commands.synth",
        "runtime.commands.doctor",
    ),
}
FOLDERS = ("android", "convert", "quantize", "runtime")  # whose log messages are shown
COMPLETION = "_ARGCOMPLETE"  # set by the function that argcomplete gives the shell
_PURPOSE = "Converts MiniCPM-V for phones and checks the result against the original model."
_ADVICE = (
    "`minicpmv COMMAND --help` describes a command. `convert`, `chat` and `info` use the demo\n"
    "checkpoint when none is named. Exit codes: 0, success; 1, a check failed; 2, an error."
)
FAILED, INTERRUPTED, BROKEN_PIPE = 2, 128 + signal.SIGINT, 128 + signal.SIGPIPE


class Command(Protocol):
    """What a command's module defines."""

    NAME: str
    HELP: str  # one line
    EXAMPLES: tuple[tuple[str, str], ...]  # pairs: what it does, command line

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Declares the arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Does the work and returns the exit code."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0, 1 (a check failed) or 2 (an error)."""
    streams.set_up()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        try:
            return _run(argv)
        finally:
            streams.flush()  # also after --help, where the parser exits
    except BrokenPipeError:
        return BROKEN_PIPE
    except OSError as error:  # stdout is a file on a full disk
        streams.tell(_line(error))
        return FAILED
    finally:
        streams.abandon()


def _run(argv: Sequence[str] | None) -> int:
    """Runs the command line and reports errors."""
    let_threads_sleep()
    parser = make_parser()
    if COMPLETION in os.environ:  # the shell asks for completions
        import argcomplete

        argcomplete.autocomplete(parser)  # exits
    args = parser.parse_args(argv)
    _show_logs(verbose=getattr(args, "verbose", False))
    try:
        code: int = args.run(args)
        return code
    except KeyboardInterrupt:
        streams.tell("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except (ToolkitError, OSError, MemoryError) as error:
        if args.debug:
            streams.tell_trace()
        streams.tell(_line(error))
        return FAILED
    except Exception:
        streams.tell_trace()
        streams.tell("This is a bug in minicpmv; please report it.")
        return FAILED


def let_threads_sleep() -> None:
    """Makes OpenMP's threads sleep while they wait; must come before the first import of torch.

    They spin by default, which takes the processor from the very threads that they wait for where
    other programs compute, too. What the user has set stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands; `--help` lists them by the user's steps."""
    parser = argparse.ArgumentParser(
        prog="minicpmv",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [-h] [--version] COMMAND ...",
    )
    parser.add_argument("--version", action="version", version=f"minicpmv {VERSION}")
    subparsers = parser.add_subparsers(
        prog=parser.prog, metavar="COMMAND", required=True, help=argparse.SUPPRESS
    )
    steps = {}
    for title, modules in COMMANDS.items():
        commands = [cast(Command, importlib.import_module(module)) for module in modules]
        for command in commands:
            _add_command(subparsers, command)
        steps[title] = {command.NAME: command.HELP for command in commands}
    parser.description = _overview(steps)
    parser.epilog = _ADVICE
    return parser


def _add_command(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser], command: Command
) -> None:
    """Declares a command, with its examples below its options."""
    examples = "".join(f"  {does}:\n    {line}\n" for does, line in command.EXAMPLES)
    parser = subparsers.add_parser(
        command.NAME,
        description=f"{command.HELP[:1].upper()}{command.HELP[1:]}.",
        epilog=f"examples:\n{examples}" if examples else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.configure(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=command.run)


def _overview(steps: dict[str, dict[str, str]]) -> str:
    """Lists the commands by step, each with one line of help."""
    width = max(len(name) for commands in steps.values() for name in commands)
    lines = [_PURPOSE]
    for title, commands in steps.items():
        lines += ["", f"{title}:"]
        lines += [f"    {name.ljust(width)}  {text}" for name, text in commands.items()]
    return "\n".join(lines)


def _line(error: BaseException) -> str:
    """Describes an error in one line."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    return f"{type(error).__name__}: {' '.join(text.split())}".removesuffix(": ")


def _show_logs(*, verbose: bool) -> None:
    """Shows all log messages of this toolkit, and warnings of other packages."""
    from convert.support.console import LogHandler

    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[LogHandler()])
    for folder in FOLDERS:
        logging.getLogger(folder).setLevel(logging.DEBUG if verbose else logging.INFO)


def _leave(number: int, frame: FrameType | None) -> None:
    """Turns a signal into an exception, so that half-written folders are removed."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
