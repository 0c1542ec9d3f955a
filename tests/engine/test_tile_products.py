"""x86's matrix unit (AMX): its kernel, its trial at start, and the blocks that use it.

No machine has run the blocks with AMX: Bochs emulates the kernel, and a model in C++ stands in for
it where blocks are computed.
"""

from __future__ import annotations

import re
import shutil
import struct
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm

from android.build.bochs import unpack_bochs
from convert.blocks.linear import Linear, linear_codes
from convert.blocks.lowering import KERNELS
from convert.blocks.outer_products import linear_of_several
from convert.blocks.products_x86 import X86
from convert.bundle.targets import HOST
from convert.engine.compile import Target
from convert.engine.toolchain import Toolchain, Unit
from convert.engine.units import ENGINE, SENTENCEPIECE, engine_unit
from tests.engine.bochs import BASE, run_bare
from tests.engine.components import Components
from tests.engine.stand_ins import TRIPLE, link, load_stand_ins, stand_in
from tests.engine.test_outer_products import TILE, expected_products
from tests.support.needs import need_bochs, need_compiler

_HERE = Path(__file__).parent
_HEAD, _LINE = 128, 64  # bytes of a case's head, and what its parts are aligned to
QEMU_X86 = "qemu-x86_64-static"


def _case(length: int, columns: int, groups: int, quads: int) -> tuple[bytes, np.ndarray]:
    """Makes a case of bare_machine.cc, and what it must give to the bit.

    Bochs to 3.1 takes the signed bytes of TDPBSSD for unsigned, so none is negative. Signs are the
    instruction's, and the trial at start has some.
    """
    rng = np.random.default_rng([length, columns, groups, quads])
    weights = rng.integers(0, 128, (groups, quads, TILE, 4)).astype(np.int8)
    tokens = rng.integers(0, 128, (length, groups, quads, 4)).astype(np.int8)
    weights[0], tokens[0] = 127, 127  # the largest sums
    steps = rng.normal(size=(groups, TILE)).astype(np.float16)
    scales = rng.normal(size=(length, groups)).astype(np.float32)
    beyond = np.full((length, columns + 3), -1, np.float32)
    stride, parts, places = beyond.strides[0], bytearray(), []
    for part in (weights, steps, tokens, scales, beyond):
        places.append(_HEAD + len(parts))
        parts += part.tobytes()
        parts += bytes(-len(parts) % _LINE)
    about = (stride, length, columns, groups, quads, *places, beyond.nbytes, _HEAD + len(parts))
    beyond[:, :columns] = expected_products(weights, steps, tokens, scales)[:, :columns]
    return struct.pack("<12q", *about).ljust(_HEAD, b"\0") + parts, beyond


def _bare_program(output: Path) -> None:
    """Links bare_machine.cc with the engine's kernel, to lie at a fixed address."""
    with Toolchain(TRIPLE) as toolchain, SENTENCEPIECE.unpacked() as package:
        units = [
            engine_unit("bare", _HERE, ["bare_machine.cc"], package),
            _kernel_unit(package),
        ]
        objects = [o for unit in units for o in toolchain.compile(unit, lambda *_: None)]
    flags = ("-static", "-no-pie", "-z", "norelro", f"--image-base={BASE:#x}", "-e", "Main")
    link(objects, output, *flags)


def _kernel_unit(package: Path) -> Unit:
    return engine_unit("tiles", ENGINE, ["tile_products_x86.cc"], package)


def test_the_kernel_is_exact(tmp_path: Path) -> None:
    """For whole and cut tiles of rows and tokens, and every number of groups that is left over."""
    need_bochs()
    need_compiler()
    _bare_program(tmp_path / "program")
    shapes = product(
        (1, 3, 4, 9, 16, 17, 33),
        (16, 1, 5, 8, 13),
        ((1, 8), (2, 1), (3, 32), (4, 8), (9, 8), (1, 24), (4, 56), (2, 64)),
    )
    cases = [_case(length, columns, *sizes) for length, columns, sizes in shapes]
    data = b"".join(one for one, _ in cases) + bytes(_HEAD)
    folder = tmp_path / ("a long path, which Bochs itself does not bear, " * 4)
    command, environment = unpack_bochs(folder)
    out = run_bare(command, environment, tmp_path / "program", data, folder)
    assert len(out) == sum(expected.nbytes for _, expected in cases)
    for _, expected in cases:
        actual = np.frombuffer(out[: expected.nbytes], np.float32).reshape(expected.shape)
        np.testing.assert_array_equal(actual, expected)
        out = out[expected.nbytes :]


def test_the_kernel_multiplies_signed_bytes() -> None:
    """It holds TDPBSSD, and neither TDPBUSD, TDPBSUD nor TDPBUUD."""
    need_compiler()
    with Toolchain(TRIPLE) as toolchain, SENTENCEPIECE.unpacked() as package:
        (compiled,) = toolchain.compile(_kernel_unit(package), lambda *_: None)
    # VEX.128.0F38.W0 5E; the last two bits of the third byte tell them apart: 3 is TDPBSSD.
    found = re.findall(rb"\xc4\xe2([\x40-\x7b])\x5e[\xc0-\xff]", compiled.read_bytes(), re.DOTALL)
    assert {byte[0] & 3 for byte in found if byte[0] & 0x84 == 0} == {3}
    assert len(found) >= 4  # one for each tile of sums


def test_what_is_wrong_with_a_unit_is_said(
    components: Components, components_program: Path
) -> None:
    """A processor without the unit, or a system that does not permit it."""
    announced = "amx_int8" in Path("/proc/cpuinfo").read_text()
    said = components.call("matrix").decode()
    assert said == components.call("matrix").decode()
    if not announced:
        assert said == "the system does not permit it (Linux does from 5.16 on)"
    if shutil.which(QEMU_X86) is not None:  # knows nothing of such permissions
        with Components(QEMU_X86, str(components_program)) as running:
            said = running.call("matrix").decode()
        assert said == "the system does not permit it (Linux does from 5.16 on)"


@pytest.mark.parametrize("form", ["q4", "q8"])
def test_products_have_the_same_bits(form: str, tmp_path: Path) -> None:
    """As those without the unit: it gets the right arguments, and what follows is the same."""
    load_stand_ins(tmp_path)
    by_unit = stand_in(X86["amx"].several)
    c = Linear(rows=501, columns=337, bias=True, gelu=True, residual=0.7)
    size, blocks, dtype = (32, 4, "uint8") if form == "q4" else (128, 32, "int8")
    zero_point = 8 if form == "q4" else 0
    by = getattr(X86["avx2"], form)
    without = _compiled(linear_codes(c, size, by, blocks, dtype))
    with_unit = _compiled(linear_of_several(c, size, by, blocks, dtype, zero_point, by_unit))
    groups, row_tiles = -(-c.columns // size), -(-c.rows // TILE)
    rng = np.random.default_rng(0)
    low, high = (0, 256) if form == "q4" else (-127, 128)
    weights = rng.integers(low, high, (row_tiles, groups, blocks, 4 * TILE)).astype(dtype)
    steps = rng.normal(size=(row_tiles, groups, TILE)).astype(np.float16)
    bias = rng.normal(size=c.rows).astype(np.float32)
    for length in (1, 7, 8, 16, 37):
        codes = rng.integers(-127, 128, (length, groups, size)).astype(np.int8)
        scale = rng.normal(size=(length, groups)).astype(np.float32)
        offset = -zero_point * codes.sum(-1, dtype=np.int32)
        residual = rng.normal(size=(length, c.rows)).astype(np.float32)
        inputs = [codes, scale, offset, weights, steps, bias, residual]
        expected, actual = (run(inputs, (length, c.rows)) for run in (without, with_unit))
        np.testing.assert_array_equal(actual, expected)


def _compiled(function: Any) -> Callable[[list[np.ndarray], tuple[int, int]], np.ndarray]:
    """Compiles a kernel for this PC; returns what calls it and gives its output."""
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    target = tvm.target.Target(Target.load(HOST).variants[-1].tvm)
    compiled = tvm.compile(module, target=target, tir_pipeline=KERNELS)["main"]

    def run(inputs: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
        out = tvm.runtime.tensor(np.empty(shape, np.float32))
        compiled(*map(tvm.runtime.tensor, inputs), out)
        result: np.ndarray = out.numpy()
        return result

    return run


def test_the_kind_is_for_processors_with_vnni_too() -> None:
    """Fewer tokens than fill a tile stay on its products."""
    amx, vnni = Target.load(HOST).variants[:2]
    assert (amx.name, vnni.name) == ("amx", "avx512")
    assert amx.requires == (*vnni.requires, "amx-int8") and amx.tvm == vnni.tvm
    assert X86["amx"].q4 is X86["vnni"].q4 and X86["amx"].q8 is X86["vnni"].q8
