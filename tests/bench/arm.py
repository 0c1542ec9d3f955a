"""The inner loops for arm64 beside llama.cpp's, by llvm-mca: `python -m tests.bench.arm`.

Nothing runs: llvm-mca 19 (Debian: `apt install llvm-19`) simulates one pass after the other of
each innermost loop that multiplies bytes, with all data in the nearest cache. Processor models are
those that are really the chip's: neoverse-n1 (like Cortex-A76), neoverse-v1 (like Cortex-X1),
cortex-a55, cortex-a53, cortex-a510; LLVM 19 takes the Cortex-A57's for cortex-a76 itself.
llama.cpp's kernels are compiled by zig from the source of llama-cpp-python, which pip downloads
into the toolkit's cache. KleidiAI's are those for the same format, of a clone of its repository
(github.com/ARM-software/kleidiai) that `--kleidiai` names.

A row is a loop. `tokens` share a load of the weights; `weights` are the bytes of 4-bit or int8
codes that a cycle gets through, scales aside. Rows of "assembly" are products of several tokens,
of "call" what calls them: a tile of 4-bit weights is unpacked once for so many tokens. Rows of
"few" unpack codes in registers; those of "few call" are the blocks that so many tokens make, and
count no products of tokens that only fill a block. "pack" arranges 16 inputs of 16 tokens.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from convert.engine.compile import Variant
from convert.engine.units import ENGINE
from quantize.errors import ToolkitError
from tests.bench import arm_loops, llama_build
from tests.bench.convert import commit

PROGRAM, OBJDUMP = "llvm-mca-19", "llvm-objdump-19"
MODELS = {
    "neon": ("neoverse-n1", "cortex-a55", "cortex-a53"),
    "dotprod": ("neoverse-n1", "neoverse-v1", "cortex-a55", "cortex-a510"),
    "i8mm": ("neoverse-v1", "cortex-a510"),
}  # by names of convert/blocks/products.py
_FORMATS = {"q4": 0.5, "q8": 1.0}  # bytes per code
_ROWS, _TILE = 4, 16  # that a pass of products in assembly has, and that a tile has
_GROUP = 32  # inputs that share a scale, of 4-bit codes here and of KleidiAI's
_HIGH_HALF = re.compile(r"^ u(?:shr|sra) .*\.16b, #4$", re.M)
_CALLS = (16, 128)  # tokens of a call: the least, and those of a chunk of prefill
# Tokens of the blocks of few_products_arm64.S, in its order; how many are cut earlier, and where.
FEW = {
    "minicpmv_few_dot_products": (2, 3, 4, 5, 6, 7, 8),
    "minicpmv_few_matrix_products": (2, 4, 6, 8),
}
_CUT, _FIRST = 9, 4


@dataclass(frozen=True)
class Theirs:
    """A kernel of llama.cpp, and how it is compiled."""

    file: str  # in ggml/src/ggml-cpu/arch/arm
    symbol: str
    features: str  # zig's -mcpu
    products: str  # ours of the same instructions
    weights: int  # codes that a pass gets through


THEIRS = (
    Theirs("quants.c", "ggml_vec_dot_q4_0_q8_0", "generic", "neon", 64),
    Theirs("quants.c", "ggml_vec_dot_q4_0_q8_0", "generic+v8_2a+dotprod", "dotprod", 64),
    Theirs("repack.cpp", "ggml_gemv_q4_0_4x4_q8_0", "generic+v8_2a+dotprod", "dotprod", 128),
    Theirs("repack.cpp", "ggml_gemm_q4_0_4x4_q8_0", "generic+v8_2a+dotprod", "dotprod", 128),
    Theirs("repack.cpp", "ggml_gemv_q4_0_4x8_q8_0", "generic+v8_2a+dotprod+i8mm", "i8mm", 128),
    Theirs("repack.cpp", "ggml_gemm_q4_0_4x8_q8_0", "generic+v8_2a+dotprod+i8mm", "i8mm", 128),
)


KLEIDIAI = Path("kai/ukernels/matmul/matmul_clamp_f32_qsi8d32p_qsi4c32p")
KLEIDIAI_KERNELS = (
    ("dotprod", "kai_matmul_clamp_f32_qsi8d32p1x4_qsi4c32p4x4_1x4_neon_dotprod"),
    ("dotprod", "kai_matmul_clamp_f32_qsi8d32p1x8_qsi4c32p4x8_1x4x32_neon_dotprod"),
    ("dotprod", "kai_matmul_clamp_f32_qsi8d32p4x4_qsi4c32p4x4_16x4_neon_dotprod"),
    ("i8mm", "kai_matmul_clamp_f32_qsi8d32p4x8_qsi4c32p4x8_16x4_neon_i8mm"),
    ("i8mm", "kai_matmul_clamp_f32_qsi8d32p4x8_qsi4c32p4x8_8x4x32_neon_i8mm"),
)  # ours of the same instructions, the kernel; a pass has 4 rows of 32 inputs


@dataclass(frozen=True, kw_only=True)
class Row:
    """A loop on a processor."""

    whose: str
    kernel: str
    processor: str
    tokens: int
    instructions: int
    cycles: float
    multiply_adds: int  # per pass; the rest per cycle
    multiply_adds_per_cycle: float
    loaded_bytes_per_cycle: float
    weight_bytes_per_cycle: float


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llvm-mca", default=PROGRAM, metavar="FILE", help="default: %(default)s")
    parser.add_argument("--llvm-objdump", default=OBJDUMP, metavar="FILE")
    parser.add_argument("--only-ours", action="store_true", help="without llama.cpp")
    parser.add_argument("--kleidiai", type=Path, metavar="FOLDER", help="a clone; default: without")
    parser.add_argument("--json", action="store_true", help="print one line of JSON on stdout")
    args = parser.parse_args()
    try:
        for program in (args.llvm_mca, args.llvm_objdump):
            if shutil.which(program) is None:
                raise ToolkitError(f"{program}: not found; try apt install llvm-19")
        rows = list(ours(args.llvm_mca, args.llvm_objdump))
        if not args.only_ours:
            rows += theirs(args.llvm_mca, llama_build.source())
        if args.kleidiai is not None:
            rows += kleidiai(args.llvm_mca, args.llvm_objdump, args.kleidiai)
    except ToolkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json:
        about = {"bench": "arm", "llvm_mca": args.llvm_mca, "commit": commit()}
        print(json.dumps(about | {"rows": [asdict(row) for row in rows]}))
    else:
        _print(rows)
    return 0


def ours(program: str, objdump: str) -> Iterator[Row]:
    """Yields the loops of the decoder's and the vision tower's products."""
    from convert.bundle.plan import Recipe, make_plan
    from convert.checkpoint.synth import load_config
    from convert.engine.compile import Target
    from tests.bench.kernel_cases import LINEAR, PACK, cases, compiled

    assembly = "".join(
        disassembled(ENGINE / f"{name}_products_arm64.S", objdump) for name in ("dot", "few")
    )
    config = load_config("minicpm-v-1.0")
    plan = make_plan(config, False, Recipe.load("q4f16_1"))
    for variant in Target.load("android-arm64").variants:
        if variant.products not in MODELS:  # llvm-mca knows no matrix unit
            continue
        done = set()
        for case in cases(config, plan, variant, (1,)):
            if case.kind == PACK and case.arguments[0].shape[-1] == _GROUP and PACK not in done:
                done.add(PACK)
                plain = arm_loops.innermost(compiled(case, variant).mod.inspect_source("asm"))
                loop = max(plain, key=lambda loop: loop.loaded_bytes)
                about = ("q4", MODELS[variant.products], program)
                yield from _rows("ours", f"{variant.name} {PACK}", [loop], *about, [_TILE])
            if case.kind != LINEAR or case.format not in _FORMATS or case.format in done:
                continue
            done.add(case.format)
            text = compiled(case, variant).mod.inspect_source("asm")
            found = list(arm_loops.loops(text))
            if not found:
                raise ToolkitError(f"{variant.name} {case.format}: no loop multiplies bytes")
            yield from _case(case.format, variant, text, assembly, found, program)


def _case(
    format: str,
    variant: Variant,
    compiled: str,
    assembly: str,
    found: Sequence[arm_loops.Loop],
    program: str,
) -> Iterator[Row]:
    """Yields the loops of a kind's products of a format: compiled ones, then those in assembly."""
    from convert.blocks.processors import products
    from convert.blocks.products import UNIT
    from convert.blocks.tir import row_blocks
    from quantize.int8 import INT8_GROUP

    by = products(variant.products)
    several, four_bits = by.several, format == "q4"
    few = several.few if several is not None and four_bits else None
    most = by.q4.tokens if four_bits else by.q8.tokens
    shared = row_blocks(most if few is None else min(most, few.least - 1))
    if len(shared) != len(found):
        raise ToolkitError(
            f"{variant.name} {format}: {len(found)} loops multiply bytes; expected "
            f"{len(shared)}, one for each number of tokens"
        )
    about = (format, MODELS[variant.products], program)
    name = f"{variant.name} {format}"
    yield from _rows("ours", name, found, *about, shared)
    if several is None:
        return
    function = arm_loops.function(assembly, several.name)
    inputs = _GROUP if four_bits else INT8_GROUP
    around = arm_loops.around(function, passes=inputs // UNIT - 1)
    whole = sorted(around, key=_tokens, reverse=True)
    blocks = [_tokens(loop, inputs) for loop in whole]
    yield from _rows("ours", f"{name} assembly", whole, *about, blocks)
    if few is not None:
        yield from _calls(f"{name} call", compiled, whole[0], *about)
        found = list(arm_loops.loops(arm_loops.function(assembly, few.name)))
        yield from _rows("ours", f"{name} few", found, *about, FEW[few.name])
        by_tokens = dict(zip(FEW[few.name], found, strict=True))
        numbers = range(few.least, several.least)
        yield from _few_calls(f"{name} few call", by_tokens, *about, numbers)


def theirs(program: str, source: Path) -> Iterator[Row]:
    """Yields the loops of llama.cpp's products of Q4_0 with Q8_0."""
    for one in THEIRS:
        assembly = compile_theirs(source, one)
        text = arm_loops.function(assembly, one.symbol)
        found = list(arm_loops.loops(arm_loops.decoded(text, program.replace("-mca", "-mc"))))
        if not found:
            raise ToolkitError(f"{one.symbol}, {one.features}: no loop multiplies bytes")
        shared = [loop.multiply_adds // one.weights for loop in found]
        name = one.symbol.removeprefix("ggml_").removesuffix("_q8_0")
        yield from _rows(
            "llama.cpp", f"{one.products} {name}", found, "q4", MODELS[one.products], program,
            shared,
        )  # fmt: skip


def kleidiai(program: str, objdump: str, clone: Path) -> Iterator[Row]:
    """Yields the loops of KleidiAI's products of blocks of 32, which are one of its sub-blocks.

    Raises:
        ToolkitError: there is no such kernel in the clone, or it does not compile.
    """
    for kind, symbol in KLEIDIAI_KERNELS:
        found = list(
            arm_loops.around(disassembled(clone / KLEIDIAI / f"{symbol}_asm.S", objdump), passes=1)
        )
        name = f"{kind} {symbol.removeprefix('kai_matmul_clamp_f32_')}"
        yield from _rows("KleidiAI", name, found, "q4", MODELS[kind], program, map(_tokens, found))


def disassembled(source: Path, objdump: str) -> str:
    """Assembles a file for arm64; returns its instructions with every address as a label.

    Raises:
        ToolkitError: it is not there, or is no assembly.
    """
    if not source.is_file():
        raise ToolkitError(f"{source}: not found; expected assembly for arm64")
    command = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-musl", "-w", "-c"]
    command.append(f"-I{ENGINE.parents[1]}")
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "kernels.o"
        command += [str(source), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error" in line]
            raise ToolkitError(f"{source.name}: {[*errors, 'no message'][0]}")
        return arm_loops.disassembled(made, objdump)


def compile_theirs(source: Path, one: Theirs) -> str:
    """Compiles a file of llama.cpp for arm64 to assembly.

    Raises:
        ToolkitError: it does not compile; the first error says why.
    """
    ggml = source / "ggml"
    compiler = "c++" if one.file.endswith(".cpp") else "cc"
    command = [sys.executable, "-m", "ziglang", compiler, "-target", "aarch64-linux-musl"]
    command += [f"-mcpu={one.features}", "-O3", "-g0", "-DNDEBUG", "-D_GNU_SOURCE", "-S"]
    folders = (ggml / "include", ggml / "src", ggml / "src" / "ggml-cpu")
    command += [f"-I{folder}" for folder in folders]
    command.append(str(ggml / "src" / "ggml-cpu" / "arch" / "arm" / one.file))
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "kernels.s"
        command += ["-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error" in line]
            raise ToolkitError(f"{one.file}, {one.features}: {[*errors, 'no message'][0]}")
        return made.read_text("utf-8", "replace")


def _rows(
    whose: str,
    kernel: str,
    found: Sequence[arm_loops.Loop],
    format: str,
    processors: Sequence[str],
    program: str,
    tokens: Iterable[int],
) -> Iterator[Row]:
    """Analyses loops; in a pass of each, so many `tokens` share the weights."""
    for loop, shared in zip(found, tokens, strict=True):
        for processor in processors:
            result = arm_loops.analyse(loop, program, processor)
            rate = loop.multiply_adds / result.cycles
            yield Row(
                whose=whose,
                kernel=kernel,
                processor=processor,
                tokens=shared,
                instructions=result.instructions,
                cycles=result.cycles,
                multiply_adds=loop.multiply_adds,
                multiply_adds_per_cycle=rate,
                loaded_bytes_per_cycle=loop.loaded_bytes / result.cycles,
                weight_bytes_per_cycle=rate / shared * _FORMATS[format],
            )


def _calls(
    kernel: str,
    compiled: str,
    block: arm_loops.Loop,
    format: str,
    processors: Sequence[str],
    program: str,
) -> Iterator[Row]:
    """Yields what a tile takes with all tokens: a group is unpacked, then multiplied by blocks."""
    plain = (loop for loop in arm_loops.innermost(compiled) if not loop.multiply_adds)
    (unpack,) = (loop for loop in plain if _HIGH_HALF.search("\n".join(loop.lines)))
    shared = _tokens(block)
    for tokens in _CALLS:
        passes = tokens // shared * _TILE // _ROWS
        for processor in processors:
            once = arm_loops.analyse(unpack, program, processor)
            each = arm_loops.analyse(block, program, processor)
            cycles = once.cycles + passes * each.cycles
            loaded = unpack.loaded_bytes + passes * block.loaded_bytes
            rate = passes * block.multiply_adds / cycles
            yield Row(
                whose="ours",
                kernel=kernel,
                processor=processor,
                tokens=tokens,
                instructions=once.instructions + passes * each.instructions,
                cycles=cycles,
                multiply_adds=passes * block.multiply_adds,
                multiply_adds_per_cycle=rate,
                loaded_bytes_per_cycle=loaded / cycles,
                weight_bytes_per_cycle=rate / tokens * _FORMATS[format],
            )


def _few_calls(
    kernel: str,
    blocks: Mapping[int, arm_loops.Loop],
    format: str,
    processors: Sequence[str],
    program: str,
    numbers: Iterable[int],
) -> Iterator[Row]:
    """Yields what a group of a tile takes with so many tokens, in blocks of fewer."""
    for tokens in numbers:
        left, taken = tokens, []
        while left > 0:
            some = _FIRST if left == _CUT else min(left, max(blocks))
            size = min(n for n in blocks if n >= some)
            taken += [blocks[size]] * (size * _TILE * _GROUP // blocks[size].multiply_adds)
            left -= some
        for processor in processors:
            each = [arm_loops.analyse(loop, program, processor) for loop in taken]
            cycles = sum(one.cycles for one in each)
            multiply_adds = tokens * _TILE * _GROUP
            yield Row(
                whose="ours",
                kernel=kernel,
                processor=processor,
                tokens=tokens,
                instructions=sum(one.instructions for one in each),
                cycles=cycles,
                multiply_adds=multiply_adds,
                multiply_adds_per_cycle=multiply_adds / cycles,
                loaded_bytes_per_cycle=sum(loop.loaded_bytes for loop in taken) / cycles,
                weight_bytes_per_cycle=_TILE * _GROUP * _FORMATS[format] / cycles,
            )


def _tokens(loop: arm_loops.Loop, inputs: int = _GROUP) -> int:
    """Returns how many tokens a pass of a group multiplies with four rows."""
    return loop.multiply_adds // (_ROWS * inputs)


def _print(rows: Sequence[Row]) -> None:
    from convert.support.console import print_table, results

    header = ["", "kernel", "processor", "tokens", "instructions", "cycles", "multiply-adds"]
    header += ["per cycle", "loaded B/cycle", "weights B/cycle"]
    print_table(results(), header, [list(asdict(row).values()) for row in rows])


if __name__ == "__main__":
    sys.exit(main())
