"""A picture's attention on arm64, by llvm-mca: `python -m tests.bench.arm_attention`.

Nothing runs; see `tests.bench.arm` for the simulator and the processors. A number is the cycles
that a loop takes for a query and a key, of one head of 1.0's vision encoder: for their score, for
the weight that softmax makes of it, and for the weighted value. `float32` is the kernel of
`convert/blocks/attention.py`, `int8` that of `byte_attention.py`, whose products are the engine's
assembly. What is done once for a head or for a tile of queries is left out, in both.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial

import tvm

from convert.blocks.attention import Heads, attention
from convert.blocks.byte_attention import byte_attention
from convert.blocks.lowering import KERNELS
from convert.blocks.processors import products
from convert.blocks.products import UNIT
from convert.blocks.tir import LANES
from convert.checkpoint.synth import load_config
from convert.engine.compile import Target, Variant
from convert.engine.units import ENGINE
from convert.support.console import print_table, results
from quantize.errors import ToolkitError
from tests.bench import arm_loops
from tests.bench.arm import MODELS, OBJDUMP, PROGRAM, disassembled
from tests.bench.convert import commit

_UNITS = 8  # of keys whose values share a step
_TOKENS, _ROWS = 8, 4  # that a pass of the assembly has


@dataclass(frozen=True, kw_only=True)
class Row:
    """A kernel on a processor: cycles for a query and a key."""

    kernel: str
    processor: str
    scores: float
    softmax: float
    values: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.scores + self.softmax + self.values


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llvm-mca", default=PROGRAM, metavar="FILE", help="default: %(default)s")
    parser.add_argument("--llvm-objdump", default=OBJDUMP, metavar="FILE")
    parser.add_argument("--json", action="store_true", help="print one line of JSON on stdout")
    args = parser.parse_args()
    try:
        for program in (args.llvm_mca, args.llvm_objdump):
            if shutil.which(program) is None:
                raise ToolkitError(f"{program}: not found; try apt install llvm-19")
        rows = list(measure(args.llvm_mca, args.llvm_objdump))
    except ToolkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json:
        found = [asdict(row) | {"total": row.total} for row in rows]
        print(json.dumps({"bench": "arm_attention", "commit": commit(), "rows": found}))
    else:
        header = ["kernel", "processor", "scores", "softmax", "values", "total"]
        table = [[*asdict(row).values(), row.total] for row in rows]
        print_table(results(), header, table)
    return 0


def measure(program: str, objdump: str) -> Iterator[Row]:
    """Yields both kernels of each kind of processor that has int8 products."""
    assembly = disassembled(ENGINE / "dot_products_arm64.S", objdump)
    vision = load_config("minicpm-v-1.0").vision
    assert vision is not None
    head_dim, width = vision.head_dim, vision.embed_dim
    heads = [Heads(3 * width, i * width) for i in range(3)]
    for variant in Target.load("android-arm64").variants:
        by = products(variant.products)
        if variant.products not in MODELS or by.several is None:
            continue
        sizes = (vision.num_heads, head_dim, *heads)
        wide = _Float(variant, attention(*sizes, block=by.queries), head_dim, by.queries)
        narrow = _Int8(variant, byte_attention(*sizes, by.several, vision.most_patches))
        passes = partial(arm_loops.around, arm_loops.function(assembly, by.several.name))
        units = {n: max(passes(n - 1), key=_products) for n in (-(-head_dim // UNIT), _UNITS)}
        for processor in MODELS[variant.products]:
            cycles = partial(_cycles, program, processor)
            scores, values = (cycles(loop) / (_TOKENS * _ROWS) for loop in units.values())
            yield Row(
                kernel=f"{variant.name} float32",
                processor=processor,
                scores=cycles(wide.scores) * head_dim / (LANES * by.queries),
                softmax=cycles(wide.softmax) / LANES,
                values=sum(map(cycles, wide.values)) / by.queries,
            )
            yield Row(
                kernel=f"{variant.name} int8",
                processor=processor,
                scores=scores,
                softmax=cycles(narrow.weigh) / (by.several.inputs * LANES)
                + cycles(narrow.largest) / LANES,
                values=2 * values * head_dim / (_UNITS * UNIT),
            )


class _Int8:
    """The loops of the int8 kernel that are compiled."""

    def __init__(self, variant: Variant, kernel: object) -> None:
        found = _loops(variant, kernel)
        softmax = [loop for loop in found if _count(loop, "fmaxnm") == _count(loop, "fmul") > 0]
        largest = [loop for loop in found if _count(loop, "fcmgt") == LANES // 4]
        if (len(softmax), len(largest)) != (1, 1):
            raise ToolkitError(f"{variant.name}: other loops than those of attention in int8")
        self.weigh, self.largest = softmax[0], largest[0]


class _Float:
    """The loops of the float32 kernel, for a whole block of queries."""

    def __init__(self, variant: Variant, kernel: object, head_dim: int, queries: int) -> None:
        vectors = -(-head_dim // LANES)  # of columns: a loop each
        found = [loop for loop in _loops(variant, kernel) if _count(loop, "fmla") >= queries]
        weighing = [_count(loop, "fcvtzs") > 0 for loop in found]
        if weighing[: 1 + queries + vectors] != [False] + [True] * queries + [False] * vectors:
            raise ToolkitError(f"{variant.name}: other loops than those of attention in float32")
        self.scores, self.softmax = found[:2]
        self.values = found[1 + queries : 1 + queries + vectors]


def _loops(variant: Variant, kernel: object) -> list[arm_loops.Loop]:
    module = tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")})  # type: ignore[attr-defined]
    made = tvm.compile(module, target=tvm.target.Target(variant.tvm), tir_pipeline=KERNELS)
    return list(arm_loops.innermost(made.mod.inspect_source("asm")))


def _cycles(program: str, processor: str, loop: arm_loops.Loop) -> float:
    return arm_loops.analyse(loop, program, processor).cycles


def _products(loop: arm_loops.Loop) -> int:
    return loop.multiply_adds


def _count(loop: arm_loops.Loop, operation: str) -> int:
    return sum(line.split()[0] == operation for line in loop.lines)


if __name__ == "__main__":
    sys.exit(main())
