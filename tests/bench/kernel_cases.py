"""The kernels of a model's blocks one by one, with arguments of the sizes that they really get.

They are taken out of the very module that `convert` compiles, so none is forgotten, and none is
measured that nothing calls.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax, tirx

from convert.blocks.lowering import KERNELS
from convert.blocks.processors import products
from convert.bundle.plan import Plan
from convert.checkpoint.config import ModelConfig, VisionConfig
from convert.engine.compile import Target, Variant, build_blocks
from quantize.layout import TILE_ROWS

WINDOW, PINNED, START, CHUNK = 256, 70, 1000, 128  # tokens: of a cache that is full
LINEAR, EMBEDDING, STORE, PACK = "linear", "embedding", "rotate_and_store", "pack"
ALL_ATTENTION = ("attention", "byte_attention", "word_attention")
CACHED_ATTENTION = "cached_attention"
_BLOCK = 4 * TILE_ROWS  # codes in a stored block of int8


@dataclass(frozen=True)
class Argument:
    """A parameter of a kernel: a tensor's shape, or () and a value for an integer."""

    shape: tuple[int, ...]
    dtype: str
    value: int | None = None

    @property
    def nbytes(self) -> int:
        """Its size."""
        return 0 if self.value is not None else math.prod(self.shape) * _ITEM_BYTES[self.dtype]


_COMPUTED: tuple[tuple[Any, Callable[[int, int], int]], ...] = (
    (tirx.Add, operator.add),
    (tirx.Sub, operator.sub),
    (tirx.Mul, operator.mul),
    (tirx.FloorDiv, operator.floordiv),
)
_ITEM_BYTES = {"float32": 4, "int32": 4, "float16": 2, "int16": 2, "int8": 1, "uint8": 1}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kernel as one function calls it."""

    kind: str  # the first word of the kernel's name, or its words without figures
    caller: str  # the block's function
    function: Any
    rows: int  # tokens or patches
    arguments: tuple[Argument, ...]  # the last one is written

    @property
    def weight(self) -> int | None:
        """The index of a matrix's codes or values among the arguments; None: there is none."""
        if self.kind not in (LINEAR, EMBEDDING):
            return None
        after = [*self.arguments[1:], Argument((), "int64", 0)]
        return next(
            i
            for i, (one, scale) in enumerate(zip(self.arguments, after, strict=True))
            if (len(one.shape) > 2 and (one.shape[-1], one.dtype) == (TILE_ROWS, "float16"))
            or (one.shape[-1:], scale.dtype) == ((_BLOCK,), "float16")  # not packed tokens
        )

    @property
    def format(self) -> str:
        """How the matrix is stored: q4, q8 or f16; empty if there is none."""
        names = {"uint8": "q4", "int8": "q8", "float16": "f16"}
        return "" if self.weight is None else names[self.arguments[self.weight].dtype]

    @property
    def matrix(self) -> tuple[int, int] | None:
        """The matrix's shape (N, K), whole tiles and groups; None if there is none."""
        if self.weight is None:
            return None
        tiles, *inner = self.arguments[self.weight].shape
        codes = math.prod(inner) * (2 if self.format == "q4" else 1)
        return tiles * TILE_ROWS, codes // TILE_ROWS

    @property
    def multiply_adds(self) -> int:
        """Products of matrices and of attention; 0 for everything else."""
        shapes = [argument.shape for argument in self.arguments]
        if self.kind == LINEAR and self.matrix is not None:
            return self.rows * math.prod(self.matrix)
        if self.kind in ALL_ATTENTION:
            return 2 * shapes[0][0] * shapes[1][0] * shapes[-1][1]
        if self.kind == CACHED_ATTENTION:
            return 2 * self.rows * WINDOW * shapes[-1][1]
        return 0

    @property
    def nbytes(self) -> int:
        """What must be read and written at least."""
        total = sum(argument.nbytes for argument in self.arguments)
        if self.kind == EMBEDDING and self.matrix is not None:  # a row of each id, not the table
            table = sum(argument.nbytes for argument in self.arguments[1:-1])
            return total - table + table * self.rows // self.matrix[0]
        if self.kind in (CACHED_ATTENTION, STORE):
            tensors = [a for a in self.arguments if len(a.shape) == 4]
            cache = sum(a.nbytes for a in tensors)
            per_slot = sum(a.nbytes // (a.shape[1] * TILE_ROWS) for a in tensors)
            seen = WINDOW if self.kind == CACHED_ATTENTION else self.rows
            return total - cache + per_slot * seen
        return total

    @property
    def work(self) -> str:
        """Which instruction multiplies: a key of `tests.bench.machine_limits.PEAKS`."""
        if self.format in ("q4", "q8"):
            return "int8"
        return "int16" if self.kind == "word_attention" else "float32"


def host_variants(features: set[str]) -> Iterator[Variant]:
    """Yields the kinds of x86-64 blocks that a processor can run, each once.

    Without AMX: TVM alone lacks its kernel, which is a part of the engine.
    """
    seen = set()
    for target in ("host", "android-x86_64"):
        for variant in Target.load(target).variants:
            if products(variant.products).several is not None:
                continue
            if variant.name not in seen and features.issuperset(variant.requires):
                seen.add(variant.name)
                yield variant


def cases(
    config: ModelConfig, plan: Plan, variant: Variant, lengths: Sequence[int]
) -> Iterator[Case]:
    """Yields every kernel, those of the decoder once per length; equal calls once.

    Where images have several shapes, the square of their area stands for them.
    """
    module, _ = build_blocks(config, plan, variant)
    functions = {name.name_hint: function for name, function in module.functions.items()}
    ring = -(-(WINDOW - PINNED + CHUNK) // TILE_ROWS)
    known = {"tiles": -(-PINNED // TILE_ROWS) + ring}
    grid = 0 if config.vision is None else _grid(config.vision)
    if config.vision is not None:
        side, patches = grid * config.vision.patch_size, grid**2
        known |= {"height": side, "width": side, "columns": grid, "keys": patches, "count": patches}
    varying = {"vision_embed": (grid**2,), "vision_norm": (grid**2,), "key_positions": (grid,)}
    seen = set()
    for caller, kernel, first in _calls(functions):
        fixed = first[0] if first else None
        counts: Sequence[int] = lengths if fixed is None else (fixed,)
        if caller.startswith(("vision_block", "resampler")) and fixed is None:
            counts = (grid**2,)
        for rows in varying.get(caller, counts):
            if (kernel, rows) in seen:
                continue
            seen.add((kernel, rows))
            yield Case(
                kind=kind(kernel),
                caller=caller,
                function=functions[kernel],
                rows=rows,
                arguments=_arguments(functions[kernel], {**known, "rows": rows, "queries": rows}),
            )


def kind(name: str) -> str:
    """Returns what a kernel's name says of it, without shapes and the number that Relax adds."""
    words = re.match("[a-z]+(_[a-z]+)*", name)
    assert words is not None
    first = name.partition("_")[0]
    return first if first in (LINEAR, EMBEDDING, "quantize") else words[0]


def compiled(case: Case, variant: Variant) -> Any:
    """Compiles a kernel alone."""
    module = tvm.IRModule({"main": case.function.with_attr("global_symbol", "main")})
    return tvm.compile(module, target=tvm.target.Target(variant.tvm), tir_pipeline=KERNELS)


def _grid(vision: VisionConfig) -> int:
    """Returns the patches along one side of a typical image."""
    slices = vision.slices
    return vision.grid if slices is None else slices.scale_resolution // vision.patch_size


def _calls(functions: Mapping[str, Any]) -> Iterator[tuple[str, str, list[int | None]]]:
    """Yields (function, kernel, shape of the first argument) for every call of a kernel."""
    for caller, function in functions.items():
        if not isinstance(function, relax.Function):
            continue
        calls: list[Any] = []

        def visit(node: Any, calls: list[Any] = calls) -> None:
            if isinstance(node, relax.Call) and getattr(node.op, "name", "").startswith(
                ("relax.call_tir",)
            ):
                calls.append(node)

        relax.analysis.post_order_visit(function.body, visit)
        for call in calls:
            shape = call.args[1][0].ty.shape
            yield caller, call.args[0].name_hint, [_integer(n) for n in shape]


def _arguments(function: Any, sizes: Mapping[str, int]) -> tuple[Argument, ...]:
    """Returns what a kernel takes, its lengths set."""
    made = []
    integers = {"start": START, "window": WINDOW, "pinned": PINNED}
    for parameter in function.params:
        if not hasattr(parameter.ty, "shape"):
            made.append(Argument((), "int64", integers[parameter.name]))
            continue
        shape = tuple(_size(n, sizes) for n in parameter.ty.shape)
        made.append(Argument(shape, str(parameter.ty.dtype).removeprefix("T.")))
    return tuple(made)


def _size(value: Any, sizes: Mapping[str, int]) -> int:
    """Returns a length: a number, a variable, or what is computed of them."""
    if isinstance(value, tirx.Var):
        return sizes[value.name]
    for kind, compute in _COMPUTED:
        if isinstance(value, kind):
            return compute(_size(value.a, sizes), _size(value.b, sizes))
    return int(value)


def _integer(value: Any) -> int | None:
    return int(value) if isinstance(value, (int, tirx.IntImm)) else None
