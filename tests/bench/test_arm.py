"""What the analysis of arm64 loops reads out of assembly."""

from __future__ import annotations

import shutil

import pytest

from quantize.errors import ToolkitError
from tests.bench import arm_loops
from tests.bench.arm import PROGRAM

ASSEMBLY = """
first:
	mov	x8, #0
.LBB0_1:                                // outer
	ldr	q9, [x3]
.LBB0_2:                                // inner
	ldp	q0, q1, [x0], #32
	ld1r	{ v2.4s }, [x1], #4
	cbz	x9, .LBB0_3
	sdot	v4.4s, v0.16b, v2.16b
.LBB0_3:
	sdot	v5.4s, v1.16b, v2.4b[1]
	subs	x2, x2, #1
	b.ne	.LBB0_2
	subs	x4, x4, #1
	b.ne	.LBB0_1
	ret
.Lfunc_end0:
second:
1:
	smlal2	v0.8h, v1.16b, v2.16b
	smull	v0.4s, v1.4h, v2.4h
	smmla	v3.4s, v1.16b, v2.16b
	bne	1b
	ret
.Lfunc_end1:
"""


def test_only_innermost_loops_count() -> None:
    first, second = arm_loops.loops(ASSEMBLY)
    assert first.multiply_adds == 32
    assert first.loaded_bytes == 36
    assert [line.split()[0] for line in first.lines][-1] == "b.ne"
    assert second.multiply_adds == 8 + 32  # words of 16 bits are no bytes


def test_a_function_is_cut_out() -> None:
    (loop,) = arm_loops.loops(arm_loops.function(ASSEMBLY, "second"))
    assert loop.loaded_bytes == 0
    with pytest.raises(ToolkitError, match="third: not in the assembly"):
        arm_loops.function(ASSEMBLY, "third")


@pytest.mark.parametrize(
    ("line", "nbytes"),
    [
        (" ldr s0, [x1]", 4),
        (" ldur x9, [x1, #-8]", 8),
        (" ld1 { v0.16b, v1.16b }, [x0]", 32),
        (" ld1 { v0.b }[3], [x0]", 1),
        (" str q0, [x1]", 0),
        (" prfm pldl1keep, [x1]", 0),
    ],
)
def test_loads_are_counted(line: str, nbytes: int) -> None:
    assert arm_loops.Loop((line,)).loaded_bytes == nbytes


@pytest.mark.skipif(shutil.which(PROGRAM) is None, reason=f"{PROGRAM} is not installed")
def test_llvm_mca_simulates_a_loop() -> None:
    loop, _ = arm_loops.loops(ASSEMBLY)
    result = arm_loops.analyse(loop, PROGRAM, "neoverse-n1")
    assert result.instructions == 7
    assert result.cycles >= 1  # two dot products a cycle at most
    with pytest.raises(ToolkitError, match="nothing-known"):
        arm_loops.analyse(loop, PROGRAM, "nothing-known")


@pytest.mark.skipif(shutil.which(PROGRAM) is None, reason=f"{PROGRAM} is not installed")
def test_numbers_become_instructions() -> None:
    text = arm_loops.decoded("a:\n\t.inst\t0x4f9fe18a // sdot\n\tret\n", "llvm-mc-19")
    assert text.split() == "a: sdot v10.4s, v12.16b, v31.4b[0] // sdot ret".split()
    assert arm_loops.decoded("\tret\n", "missing") == "\tret\n"
    with pytest.raises(ToolkitError, match="llvm-mc-19"):
        arm_loops.decoded("\t.inst 0xffffffff\n", "llvm-mc-19")
