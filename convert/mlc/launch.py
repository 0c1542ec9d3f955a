"""Runs the compiler of a checkout of MLC-LLM with this environment's apache-tvm.

    python -m convert.mlc.launch CHECKOUT --abi 0.27 -- compile …

In a process of its own: the bridges change TVM's modules. `mlc_llm` itself loads MLC-LLM's C++
library as soon as it is imported; compiling needs none of it, so a bare package stands in its
place, through which its modules are found. The last line of stderr says what failed.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from pathlib import Path
from types import ModuleType

from convert.mlc.checkout import DRIFTED, PACKAGE

FAILED = 1  # exit code of anything but a drift


def stand_in_for(checkout: Path) -> None:
    """Makes a checkout's modules importable without its C++ library."""
    package = ModuleType("mlc_llm")
    package.__path__ = [str(checkout / PACKAGE)]
    package.__version__ = "0.1.dev0"  # type: ignore[attr-defined]
    sys.modules["mlc_llm"] = package


def main(arguments: list[str] | None = None) -> int:
    """Compiles; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m convert.mlc.launch", allow_abbrev=False)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--abi", required=True)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    stand_in_for(options.checkout)
    from convert.mlc.drifts import DriftError, build_bridges, compile_for

    try:
        build_bridges()
        compile_for(options.abi)
        from convert.mlc.minicpm_v import register

        register()
        _run(options.command)
    except DriftError as error:
        print(f"drift {error}", file=sys.stderr)
        return DRIFTED
    except Exception as error:  # whatever the user's checkout raises becomes one line
        traceback.print_exc()
        print(_one_line(error, options.checkout), file=sys.stderr)
        return FAILED
    return 0


def _run(command: list[str]) -> None:
    from mlc_llm.cli import compile as cli
    from mlc_llm.support.logging import enable_logging

    enable_logging()  # it also says how much memory is planned
    assert command[0] == "compile"
    cli.main(command[1:])


def _one_line(error: Exception, checkout: Path) -> str:
    """Says what an exception is, and which line of the checkout raised it."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename.startswith(str(checkout))
    ]
    where = ""
    if frames:
        path = Path(frames[-1].filename).relative_to(checkout)
        where = f" at {path}:{frames[-1].lineno} ({frames[-1].line})"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}{where}"[-400:]


if __name__ == "__main__":
    sys.exit(main())
