"""On a processor that supports none of the compiled blocks, the engine reports a named error."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from convert.bundle.targets import HOST, PHONE
from convert.engine.build import BlockLibrary, build_engine
from convert.engine.toolchain import BuildError
from runtime.engine_client.client import (
    EngineClient,
    EngineError,
)
from runtime.engine_client.protocol import ErrorCode, Field
from tests.engine.engines import Built
from tests.support.needs import need_qemu

QEMU_X86 = "qemu-x86_64-static"
PREFIX = "blocks_"


def _engine(target: str, triple: str, requires: tuple[str, ...], program: Path) -> Path:
    """Links an engine that claims to have blocks, which it never calls."""
    library = BlockLibrary(prefix=PREFIX, requires=requires, objects=())
    try:
        build_engine(target, triple, [library], program, "program")
    except BuildError as error:
        if "pip could not download" not in str(error):
            raise
        pytest.skip(str(error))
    return program


def _refused(command: list[str]) -> str:
    with pytest.raises(EngineError) as error:
        EngineClient(command).close()
    assert error.value.code == ErrorCode.UNSUPPORTED_CPU
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    assert done.returncode == 1 and len(done.stdout.splitlines()) == 1 and not done.stderr
    return str(error.value)


def test_this_processor(tmp_path: Path) -> None:
    program = _engine(HOST, "x86_64-linux-musl", ("x86-64-v2", "warp"), tmp_path / "engine")
    assert _refused([str(program)]).endswith("also need: warp")


def test_an_older_phone(tmp_path: Path) -> None:
    qemu = need_qemu()
    program = _engine(PHONE, "aarch64-linux-musl", ("asimd", "dotprod"), tmp_path / "engine")
    old = [qemu, "-cpu", "cortex-a53", str(program)]
    assert _refused(old).endswith("also need: dotprod")
    with EngineClient([qemu, "-cpu", "cortex-a76", str(program)]) as client:
        assert client.hello[Field.KINDS][0] == PREFIX


def test_an_older_pc(built: Built) -> None:
    """The host's engine as it is converted: its blocks need AVX2."""
    if shutil.which(QEMU_X86) is None:
        pytest.skip(f"{QEMU_X86} is not installed; it emulates old PCs")
    assert "x86-64-v3" in _refused([QEMU_X86, "-cpu", "Nehalem", str(built.program.path)])
