"""The command line `minicpmv`: finds the subcommand, runs it, turns errors into one line."""

from __future__ import annotations

import argparse
import importlib
import logging
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Protocol, cast

from convert.support import streams
from convert.support.versions import VERSION
from quantize.errors import ToolkitError

# In the order in which a user needs them. The modules import what is heavy in `run`.
COMMANDS = (
    "convert.commands.convert",
    "runtime.commands.verify",
    "runtime.commands.chat",
    "android.build.apk",
    "android.device.sideload",
    "runtime.commands.bench",
    "runtime.commands.eval",
    "runtime.commands.serve",
    "runtime.commands.compare",
    "convert.commands.info",
    "convert.commands.synth",
    "runtime.commands.doctor",
)
FOLDERS = ("android", "convert", "quantize", "runtime")  # whose log messages are shown
FAILED, INTERRUPTED, BROKEN_PIPE = 2, 128 + signal.SIGINT, 128 + signal.SIGPIPE


class Command(Protocol):
    """What a command's module offers."""

    NAME: str
    HELP: str  # one line

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
            streams.flush()  # of help, too, after which the parser ends the program
    except BrokenPipeError:
        return BROKEN_PIPE
    except OSError as error:  # a full disk, behind stdout
        streams.tell(_line(error))
        return FAILED
    finally:
        streams.abandon()


def _run(argv: Sequence[str] | None) -> int:
    """Runs the command line, and tells of errors."""
    args = _parser().parse_args(argv)
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
        streams.tell("This is a mistake of minicpmv itself; please report it.")
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="minicpmv",
        description="Puts MiniCPM-V on a phone and proves that it still works there.",
        epilog="Without a checkpoint every command takes the demo's.",
    )
    parser.add_argument("--version", action="version", version=f"minicpmv {VERSION}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in COMMANDS:
        command = cast(Command, importlib.import_module(module))
        sub = subparsers.add_parser(command.NAME, help=command.HELP, description=command.HELP)
        command.configure(sub)
        sub.add_argument("--debug", action="store_true", help="show where an error comes from")
        sub.set_defaults(run=command.run)
    return parser


def _line(error: BaseException) -> str:
    """Says in one line what is wrong."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    return f"{type(error).__name__}: {' '.join(text.split())}".removesuffix(": ")


def _show_logs(*, verbose: bool) -> None:
    """Shows this toolkit's log messages; others' only when they warn."""
    from convert.support.console import LogHandler

    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[LogHandler()])
    for folder in FOLDERS:
        logging.getLogger(folder).setLevel(logging.DEBUG if verbose else logging.INFO)


def _leave(number: int, frame: FrameType | None) -> None:
    """Ends the program on a signal as an exception does: half-written folders are removed."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
