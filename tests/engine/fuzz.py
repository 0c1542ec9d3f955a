"""Runs libFuzzer on the engine's untrusted inputs: `python -m tests.engine.fuzz`.

Inputs that reach new code are kept in `corpus/`; `--merge` minimises the corpus to the inputs that
are needed for the same coverage.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from quantize.errors import ToolkitError
from runtime.inputs.picture_file import write_picture_file
from tests.engine.engines import build_host_engine
from tests.engine.sanitized import TARGETS, Sanitized, build_sanitized
from tests.engine.test_picture import random_picture
from tests.support.slices import TINY_SLICES
from tests.support.tiny_config import tiny_config

CORPUS = Path(__file__).resolve().parent / "corpus"
MAX_BYTES = {"bundle": 1 << 15, "sequences": 512}  # of an input; 4 KiB for other targets
_INPUT_SECONDS = 20  # after which an input counts as hanging
_MEMORY_MIB = 2048  # of one allocation
# Of the whole process: the system's figure includes the parent's memory at the start, and a test
# suite may have held more than 2 GiB by then.
_PEAK_MIB = 8192
WIDTH = 256  # of tests.support.tiny's hidden states


class FuzzError(ToolkitError):
    """An input that crashes the engine, hangs it or takes too much memory."""


def fuzz(built: Sanitized, target: str, seconds: int, found: Path, *, seed: int = 0) -> str:
    """Runs one fuzzer, starting from the kept corpus.

    Args:
        built: the programs.
        target: the fuzzer's name.
        seconds: how long; 0 runs only the inputs of the corpus.
        found: a folder for new inputs.
        seed: of the random numbers; 0: a random seed.

    Returns:
        libFuzzer's final statistics.

    Raises:
        FuzzError: an input crashes it, or takes too long or too much memory; it is kept in the
            working folder.
    """
    options = [f"-max_total_time={seconds}"] if seconds else ["-runs=0"]
    options += [f"-seed={seed}", f"-timeout={_INPUT_SECONDS}", f"-rss_limit_mb={_PEAK_MIB}"]
    options.append(f"-malloc_limit_mb={_MEMORY_MIB}")
    options += [f"-max_len={MAX_BYTES.get(target, 4096)}", "-print_final_stats=1"]
    done = _run(built, target, [*options, str(found), str(CORPUS / target)])
    figures = [line for line in done.stderr.splitlines() if "cov:" in line]
    return figures[-1] if figures else "no input"


def merge(built: Sanitized, target: str, found: Path) -> int:
    """Merges the found inputs into the corpus and minimises it; returns its number of inputs."""
    kept = CORPUS / target
    with tempfile.TemporaryDirectory() as folder:
        # Keep inputs that reach new code, not those that only change execution counts.
        options = ["-merge=1", "-set_cover_merge=1", "-use_counters=0"]
        options.append(f"-max_len={MAX_BYTES.get(target, 4096)}")
        _run(built, target, [*options, folder, str(kept), str(found)])
        shutil.rmtree(kept)
        shutil.copytree(folder, kept)
    return len(list(kept.iterdir()))


def _run(
    built: Sanitized, target: str, arguments: Sequence[str]
) -> subprocess.CompletedProcess[str]:
    """Runs a fuzzer in its own folder, with the files that its requests may name."""
    environment = dict(os.environ, MINICPMV_FUZZ_BUNDLE=str(built.bundle), TVM_NUM_THREADS="1")
    memory = Path("/dev/shm")  # fuzzers write thousands of files per second
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        write_picture_file(Path(folder) / "picture", random_picture(60, 40))  # has slices
        np.ones((5, WIDTH), np.float32).tofile(Path(folder) / "row")
        prefix = f"-artifact_prefix={Path.cwd()}/{target}-"
        done = subprocess.run(
            [str(built.fuzzers[target]), prefix, *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    if done.returncode:
        raise FuzzError(f"{target}: {done.stderr[-4000:]}")
    return done


def main() -> int:
    """Builds the fuzzers and runs them in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for all targets together")
    parser.add_argument("--target", action="append", choices=TARGETS, help="by default all")
    parser.add_argument("--merge", action="store_true", help="keep what was found")
    arguments = parser.parse_args()
    targets = arguments.target or TARGETS
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        print("building", file=sys.stderr)
        config = tiny_config(**TINY_SLICES)
        bundle = build_host_engine(folder, config=config, head="different").bundle
        built = build_sanitized(bundle, folder / "programs", targets)
        for target in targets:
            found = folder / f"found-{target}"
            found.mkdir()
            figures = fuzz(built, target, arguments.seconds // len(targets), found)
            print(f"{target}: {figures}", flush=True)
            if arguments.merge:
                print(f"{target}: {merge(built, target, found)} inputs kept", flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ToolkitError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
