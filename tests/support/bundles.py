"""Tiny bundles for tests, made in a second: their programs are stand-ins."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from convert import cli
from convert.conversion import bundle_product, bundle_writer
from tests.support.tiny import write_checkpoint


def fake_program(config: Any, plan: Any, target: str, output: Path, *_: Any) -> str:
    """Writes a stand-in for an engine."""
    output.parent.mkdir(exist_ok=True)
    output.write_bytes(b"program for " + target.encode())
    return "0123456789abcdef"


def without_programs(patch: pytest.MonkeyPatch) -> None:
    """Replaces compiling and running engines by stand-ins."""
    patch.setattr(bundle_writer, "compile_ahead", lambda *_: nullcontext())
    patch.setattr(bundle_writer, "build_program", fake_program)
    patch.setattr(bundle_product, "add_golden", lambda folder, manifest, progress: manifest)


def convert(checkpoint: Path, output: Path, *arguments: str) -> int:
    """Runs `minicpmv convert` in this process and returns its exit code.

    It does not calibrate unless the arguments name a recipe, a method, a size or samples.
    """
    chosen = {"--quant", "--method", "--target-size", "--calibration"} & set(arguments)
    method = () if chosen else ("--method", "rtn")
    return cli.main(["convert", str(checkpoint), "-o", str(output), *method, *arguments])


def write_bundle(folder: Path, **checkpoint: Any) -> Path:
    """Writes a tiny checkpoint beside `folder` and converts it; see `tests.support.tiny`."""
    source = write_checkpoint(folder.with_name(f"{folder.name}-checkpoint"), **checkpoint)
    return convert_without_programs(source, folder)


def convert_without_programs(source: Path, folder: Path) -> Path:
    """Converts a checkpoint; stand-ins take the place of its programs."""
    with pytest.MonkeyPatch.context() as patch:
        without_programs(patch)
        assert convert(source, folder) == 0
    return folder


def snapshot(folder: Path) -> dict[str, bytes]:
    """Returns every file of a folder with its bytes."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
