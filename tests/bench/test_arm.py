"""What the analysis of arm64 loops reads out of assembly."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from convert.engine.units import ENGINE
from quantize.errors import ToolkitError
from tests.bench import arm, arm_attention, arm_loops
from tests.bench.arm import OBJDUMP, PROGRAM
from tests.support.needs import need_compiler

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


def test_the_loop_around_goes_through_the_inner_one() -> None:
    (loop,) = arm_loops.around(ASSEMBLY, passes=3)
    assert loop.multiply_adds == 3 * 32
    assert loop.loaded_bytes == 16 + 3 * 36
    (without,) = arm_loops.around(ASSEMBLY, passes=0)
    assert [line.split()[0] for line in without.lines] == ["ldr", "subs", "b.ne"]


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


@pytest.mark.skipif(shutil.which(OBJDUMP) is None, reason=f"{OBJDUMP} is not installed")
def test_our_assembly_has_its_loops() -> None:
    """A group of one unit for 4 tokens and for 8, and one of four units; groups of fewer tokens."""
    need_compiler()
    text = arm.disassembled(ENGINE / "dot_products_arm64.S", OBJDUMP)
    for function in ("minicpmv_dot_products", "minicpmv_matrix_products"):
        for passes, inputs in ((0, 32), (3, 128)):
            found = list(arm_loops.around(arm_loops.function(text, function), passes))
            assert [loop.multiply_adds for loop in found] == [4 * 4 * inputs, 8 * 4 * inputs]
    text = arm.disassembled(ENGINE / "few_products_arm64.S", OBJDUMP)
    for function, tokens in arm.FEW.items():
        found = list(arm_loops.loops(arm_loops.function(text, function)))
        rows = [8 if n == 2 and "dot" in function else 4 for n in tokens]
        inputs = [n * by * 32 for n, by in zip(tokens, rows, strict=True)]
        assert [loop.multiply_adds for loop in found] == inputs


def test_assembly_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match=r"neon_dotprod_asm\.S: not found"):
        list(arm.kleidiai(PROGRAM, OBJDUMP, tmp_path))


@pytest.mark.skipif(shutil.which(PROGRAM) is None, reason=f"{PROGRAM} is not installed")
def test_numbers_become_instructions() -> None:
    text = arm_loops.decoded("a:\n\t.inst\t0x4f9fe18a // sdot\n\tret\n", "llvm-mc-19")
    assert text.split() == "a: sdot v10.4s, v12.16b, v31.4b[0] // sdot ret".split()
    assert arm_loops.decoded("\tret\n", "missing") == "\tret\n"
    with pytest.raises(ToolkitError, match="llvm-mc-19"):
        arm_loops.decoded("\t.inst 0xffffffff\n", "llvm-mc-19")


@pytest.mark.skipif(
    None in (shutil.which(PROGRAM), shutil.which(OBJDUMP)), reason=f"{PROGRAM} is not installed"
)
def test_attention_is_simulated() -> None:
    """Its loops are found; int8 takes fewer cycles for products on every processor."""
    need_compiler()
    rows = list(arm_attention.measure(PROGRAM, OBJDUMP))
    assert len(rows) == 2 * sum(len(arm.MODELS[kind]) for kind in ("dotprod", "i8mm"))
    for wide, narrow in zip(rows[::2], rows[1::2], strict=True):
        assert wide.processor == narrow.processor
        assert narrow.scores + narrow.values < wide.scores + wide.values
