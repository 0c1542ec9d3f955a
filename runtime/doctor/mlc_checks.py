"""Checks what compiling with MLC-LLM needs: a compiler, and OpenCL to run its libraries here."""

from __future__ import annotations

import ctypes.util
import os
from dataclasses import replace
from pathlib import Path

from convert.mlc.checkout import TESTED_COMMITS, MlcCheckout
from convert.mlc.compilers import find_compiler
from quantize.errors import ConfigError
from runtime.doctor.checks import BROKEN, NOTE, Finding

SOURCE_VARIABLE = "MINICPMV_MLC_SOURCE"  # a checkout: looked at here, and compiled with by tests


def check_mlc(areas: tuple[str, ...]) -> list[Finding]:
    """Looks for MLC-LLM, as a checkout and installed, and for OpenCL."""
    return [_check_checkout(areas), _check_installed(areas), _check_opencl(areas)]


def _check_checkout(areas: tuple[str, ...]) -> Finding:
    what = f"`--mlc-source`; the folder in ${SOURCE_VARIABLE}"
    found = Finding(
        name="mlc-llm checkout", what=what, areas=areas, tried=f"commit {TESTED_COMMITS[0][:12]}"
    )
    folder = os.environ.get(SOURCE_VARIABLE)
    if not folder:
        detail = f"${SOURCE_VARIABLE} names none; `convert --mlc-source DIR` takes any checkout"
        return replace(found, state=NOTE, detail=detail)
    try:
        checkout = MlcCheckout.open(Path(folder))
    except ConfigError as error:
        return replace(found, state=BROKEN, detail=str(error), mend=f"unset {SOURCE_VARIABLE}")
    found = replace(found, version=checkout.version)
    return replace(found, state=NOTE, detail=checkout.warning) if checkout.warning else found


def _check_installed(areas: tuple[str, ...]) -> Finding:
    found = Finding(name="mlc_llm", what="compiles packages without a checkout", areas=areas)
    try:
        compiler = find_compiler(None)
    except ConfigError as error:
        return replace(found, state=NOTE, detail=str(error))
    if compiler is None:
        detail = "not installed in this Python; a checkout needs no installation"
        return replace(found, state=NOTE, detail=detail)
    return replace(found, version=compiler.version)


def _check_opencl(areas: tuple[str, ...]) -> Finding:
    found = Finding(name="OpenCL", what="runs libraries of `--target mlc-opencl`", areas=areas)
    library = ctypes.util.find_library("OpenCL")
    if library is not None:
        return replace(found, version=library)
    detail = "no libOpenCL; such libraries are compiled, but cannot run here"
    return replace(found, state=NOTE, detail=detail, mend="sudo apt-get install pocl-opencl-icd")
