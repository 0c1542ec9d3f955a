"""Vision blocks for images of any shape beside one: `python -m tests.bench.vision_shapes`.

A bundle's blocks take any number of patches. Here the same blocks are compiled for one number as
well, which the compiler then knows. Both take turns on random values at full size, and are compared
by their time for a patch. That grows a little with the number of patches, as attention does.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx

from convert.blocks import vision
from convert.blocks.graph import Graph
from convert.blocks.lowering import build
from convert.blocks.matrix_formats import Formats
from convert.blocks.processors import products
from convert.bundle.plan import Recipe, make_plan
from convert.checkpoint.synth import load_config
from convert.engine.compile import Variant
from convert.support.console import results
from tests.bench.kernel_cases import ALL_ATTENTION, host_variants
from tests.bench.rounds import Row, add_arguments, alternate, print_rows, report
from tests.support.processor import processor_features

TARGET = 0.95  # of the speed for one shape
# Rows and columns of patches: 1.0's square, a slice and an overview of 2.0.
ONE_SHAPE, SHAPES = (32, 32), ((32, 32), (28, 37), (41, 25))
_INPUTS = ("x", "features", "key_positions")  # of the functions; all others are weights


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = {variant.name: variant for variant in host_variants(processor_features())}
    parser.add_argument(
        "--config", default="minicpm-v-2.0", help="the model (default: %(default)s)"
    )
    parser.add_argument("--quant", default="small", help="the recipe (default: %(default)s)")
    parser.add_argument(
        "--variant", choices=known, default=next(iter(known)), help="default: %(default)s"
    )
    add_arguments(parser)
    args = parser.parse_args()
    # TVM reads it when it starts its threads.
    os.environ["TVM_NUM_THREADS"] = "1" if args.processor_time else str(args.threads)
    rows = compare(Blocks(args.config, args.quant, known[args.variant]), args)
    if args.json:
        print(json.dumps(report("vision_shapes", rows, args.rounds, variant=args.variant)))
    else:
        print_rows(results(), rows, "any shape", "one shape")
    return 0 if args.processor_time else int(any(row.reached is False for row in rows))


class Blocks:
    """A model's vision block and resampler, compiled for any shape and for one."""

    def __init__(
        self, config: str, quant: str, variant: Variant, one_shape: tuple[int, int] = ONE_SHAPE
    ) -> None:
        """Compiles them; see `main` for the arguments."""
        self._one_shape = one_shape
        model = load_config(config)
        assert model.vision is not None and model.resampler is not None, "a decoder-only model"
        formats = Formats(make_plan(model, False, Recipe.load(quant)))
        graph = Graph(products(variant.products))
        vision.vision_block(graph, model.vision, formats)
        vision.resampler(graph, model.resampler, model.vision.most_patches, formats)
        self.functions, module = tuple(graph.functions), graph.module()
        self._parameters = {name: module[name].params for name in self.functions}
        self._any, self._one = (
            relax.VirtualMachine(build(made, variant.tvm), tvm.cpu())
            for made in (module, for_one_shape(module, one_shape[0] * one_shape[1]))
        )
        self._rng = np.random.default_rng(0)

    def both(self, name: str, shapes: tuple[tuple[int, int], ...]) -> list[partial[Any]]:
        """Returns calls of a function: for one shape, then for each of `shapes`."""
        known = self._parameters[name]
        weights = [self._random(p, 0) for p in known if p.name not in _INPUTS]
        calls = []
        for i, (rows, columns) in enumerate((self._one_shape, *shapes)):
            inputs = [self._random(p, rows * columns) for p in known if p.name in _INPUTS]
            machine = self._any if i else self._one
            calls.append(partial(machine[name], *inputs, *weights))
        return calls

    def _random(self, parameter: Any, patches: int) -> Any:
        shape, dtype = [_extent(n, patches) for n in parameter.ty.shape], parameter.ty.dtype
        dtype = np.dtype(str(dtype).removeprefix("T."))
        if dtype.kind in "iu":
            codes = np.frombuffer(self._rng.bytes(int(np.prod(shape))), dtype).reshape(shape)
            return tvm.runtime.tensor(np.maximum(codes, -127) if dtype.kind == "i" else codes)
        scale = 2e-4 if dtype == np.float16 else 1  # what a code is worth
        return tvm.runtime.tensor((self._rng.standard_normal(shape) * scale).astype(dtype))


def for_one_shape(module: Any, patches: int) -> Any:
    """Returns a module whose functions and attention know the number of patches.

    Products and norms take any number of rows in every block, the decoder's too.
    """
    made = module.clone()

    def visit(node: Any) -> None:
        if not isinstance(node, relax.Call) or getattr(node.op, "name", "") != "relax.call_tir":
            return
        name, arguments = node.args
        if not name.name_hint.startswith(ALL_ATTENTION):
            return
        kernel, fixed = made[name], {}
        # The output has as many rows as the queries.
        for parameter, argument in zip(kernel.params, (*arguments, arguments[0]), strict=True):
            count = tirx.IntImm("int64", _extent(argument.ty.shape[0], patches))
            fixed[parameter] = tirx.decl_buffer([count, parameter.ty.shape[1]], "float32")
        made.update_func(name, kernel.specialize(fixed))

    for function in module.functions.values():
        if isinstance(function, relax.Function):
            relax.analysis.post_order_visit(function.body, visit)
    return relax.transform.BindSymbolicVars({vision.PATCHES: patches})(made)


def compare(blocks: Blocks, args: argparse.Namespace) -> list[Row]:
    """Measures every function on every shape."""
    clock = time.process_time if args.processor_time else time.perf_counter
    rows: list[Row] = []
    turns = []
    for name in blocks.functions:
        one, *others = blocks.both(name, SHAPES)
        for (lines, columns), call in zip(SHAPES, others, strict=True):
            title = f"{name.partition('_q')[0]}, {lines} x {columns}"
            rows.append(Row(title, "us a patch", TARGET, less_is_better=True))
            turns.append((rows[-1], lines * columns, call, one))

    def measure(kept: bool = True) -> None:
        for row, patches, any_shape, one_shape in turns:
            ours = _seconds(any_shape, clock) * 1e6 / patches
            theirs = _seconds(one_shape, clock) * 1e6 / (ONE_SHAPE[0] * ONE_SHAPE[1])
            if kept:
                row.add(ours, theirs)

    measure(kept=False)  # first calls take memory
    alternate(args.rounds, measure, on_round=lambda _: None)
    return rows


def _extent(extent: Any, patches: int) -> int:
    return int(extent) if isinstance(extent, tirx.IntImm) else patches


def _seconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return clock() - start


if __name__ == "__main__":
    sys.exit(main())
