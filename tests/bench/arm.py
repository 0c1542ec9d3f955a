"""The inner loops for arm64 beside llama.cpp's, by llvm-mca: `python -m tests.bench.arm`.

Nothing runs: llvm-mca 19 (Debian: `apt install llvm-19`) simulates one pass after the other of
each innermost loop that multiplies bytes, with all data in the nearest cache. Processor models are
those that are really the chip's: neoverse-n1 (like Cortex-A76), neoverse-v1 (like Cortex-X1),
cortex-a55, cortex-a53, cortex-a510; LLVM 19 takes the Cortex-A57's for cortex-a76 itself.
llama.cpp's kernels are compiled by zig from the source of llama-cpp-python, which pip downloads
into the toolkit's cache.

A row is a loop. `tokens` share a load of the weights; `weights` are the bytes of 4-bit or int8
codes that a cycle gets through, scales aside.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from quantize.errors import ToolkitError
from tests.bench import arm_loops, llama_build
from tests.bench.convert import commit

PROGRAM = "llvm-mca-19"
MODELS = {
    "neon": ("neoverse-n1", "cortex-a55", "cortex-a53"),
    "dotprod": ("neoverse-n1", "neoverse-v1", "cortex-a55"),
    "i8mm": ("neoverse-v1", "cortex-a510"),
}  # by names of convert/blocks/products.py
_FORMATS = {"q4": 0.5, "q8": 1.0}  # bytes per code


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
    parser.add_argument("--only-ours", action="store_true", help="without llama.cpp")
    parser.add_argument("--json", action="store_true", help="print one line of JSON on stdout")
    args = parser.parse_args()
    try:
        if shutil.which(args.llvm_mca) is None:
            raise ToolkitError(f"{args.llvm_mca}: not found; try apt install llvm-19")
        rows = list(ours(args.llvm_mca))
        if not args.only_ours:
            rows += theirs(args.llvm_mca, llama_build.source())
    except ToolkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json:
        about = {"bench": "arm", "llvm_mca": args.llvm_mca, "commit": commit()}
        print(json.dumps(about | {"rows": [asdict(row) for row in rows]}))
    else:
        _print(rows)
    return 0


def ours(program: str) -> Iterator[Row]:
    """Yields the loops of the decoder's and the vision tower's products."""
    from convert.blocks.processors import products
    from convert.blocks.tir import row_blocks
    from convert.bundle.plan import Recipe, make_plan
    from convert.checkpoint.synth import load_config
    from convert.engine.compile import Target
    from tests.bench.kernel_cases import LINEAR, cases, compiled

    config = load_config("minicpm-v-1.0")
    plan = make_plan(config, False, Recipe.load("q4f16_1"))
    for variant in Target.load("android-arm64").variants:
        if variant.products not in MODELS:  # llvm-mca knows no matrix unit
            continue
        done = set()
        for case in cases(config, plan, variant, (1,)):
            if case.kind != LINEAR or case.format not in _FORMATS or case.format in done:
                continue
            done.add(case.format)
            assembly = compiled(case, variant).mod.inspect_source("asm")
            found = list(arm_loops.loops(assembly))
            if not found:
                raise ToolkitError(f"{variant.name} {case.format}: no loop multiplies bytes")
            by = products(variant.products)
            shared = row_blocks((by.q4 if case.format == "q4" else by.q8).tokens)
            if len(shared) != len(found):
                raise ToolkitError(
                    f"{variant.name} {case.format}: {len(found)} loops multiply bytes; expected "
                    f"{len(shared)}, one for each number of tokens"
                )
            yield from _rows(
                "ours", f"{variant.name} {case.format}", found, case.format,
                MODELS[variant.products], program, shared,
            )  # fmt: skip


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
    tokens: Sequence[int],
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


def _print(rows: Sequence[Row]) -> None:
    from convert.support.console import print_table, results

    header = ["", "kernel", "processor", "tokens", "instructions", "cycles", "multiply-adds"]
    header += ["per cycle", "loaded B/cycle", "weights B/cycle"]
    print_table(results(), header, [list(asdict(row).values()) for row in rows])


if __name__ == "__main__":
    sys.exit(main())
