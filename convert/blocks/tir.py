"""What all kernels share: parameters, vectors of neighbours, loops over rows.

A kernel is plain TIR, written with TVM's IR builder: `T.Bind` names a value, loops are `with`
blocks, Python loops are unrolled. Vectors have 16 lanes, the rows of a weight tile; LLVM splits
them into what the CPU has. Lengths that vary are int64 variables, taken from the tensors' shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tvm import tirx
from tvm.ir import StringImm, TensorLoad
from tvm.ir.op import register_op_attr
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

LANES = 16
Expr = Any  # TVM has no type stubs

# TVM 0.27 cannot rename a kernel that takes an element's address, and linking renames them all:
# so `llvm.prefetch` is written late, when intrinsics are lowered.
_PREFETCH = "tirx.minicpmv_prefetch"
_OPAQUE_EFFECT = 3  # TVM's CallEffectKind: never removed
register_op_attr(_PREFETCH, "TCallEffectKind", _OPAQUE_EFFECT)
register_op_attr(_PREFETCH, "TScriptPrinterName", "prefetch")


def _write_prefetch(call: Any) -> Any:
    read, into_l2, data = (tirx.const(value, "int32") for value in (0, 2, 1))
    address = tirx.address_of(call.args[0])
    return tirx.call_llvm_intrin("void", "llvm.prefetch", address, read, into_l2, data)


tirx.register_intrin_lowering(_PREFETCH, target="llvm", f=_write_prefetch)

# A call of C, written late for the same reason.
_CALL = "tirx.minicpmv_call"
register_op_attr(_CALL, "TCallEffectKind", _OPAQUE_EFFECT)
register_op_attr(_CALL, "TScriptPrinterName", "call")


def _write_call(call: Any) -> Any:
    name, *arguments = call.args
    passed = [
        tirx.address_of(one) if isinstance(one, TensorLoad) else tirx.Cast("int64", one)
        for one in arguments
    ]
    return tirx.call_extern("int32", name.value, *passed)


tirx.register_intrin_lowering(_CALL, target="llvm", f=_write_call)


class Kernel:
    """A TIR function under construction; `function` is set when its `with` block ends."""

    function: Any = None

    def tensor(self, name: str, shape: Sequence[Expr], dtype: str = "float32") -> Expr:
        """Adds a tensor parameter; variables in `shape` are bound by the argument."""
        return T.match_buffer(T.arg(name, T.handle()), tuple(shape), dtype)

    def integer(self, name: str) -> Expr:
        """Adds an int64 parameter."""
        return T.arg(name, T.int64())

    def length(self, name: str) -> Expr:
        """Makes a variable for a parameter's shape."""
        return tirx.Var(name, "int64")


@contextmanager
def kernel(name: str) -> Iterator[Kernel]:
    """Opens a kernel whose tensors do not overlap where one of them is written."""
    made = Kernel()
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name(name)
            T.func_attr({"tirx.noalias": True})
            yield made
        made.function = builder.get()


def span(start: Expr, lanes: int = LANES) -> Expr:
    """Returns the index of `lanes` neighbours from `start` on."""
    return start if lanes == 1 else T.ramp(start, 1, lanes)


def lanes_of(width: int) -> int:
    """Returns how many lanes cut `width` evenly: at most 16."""
    return math.gcd(width, LANES)


def parts(width: int) -> Iterator[tuple[int, int]]:
    """Cuts a width into vectors (start, lanes): of 16 lanes, and for the rest of fewer."""
    at = 0
    while at < width:
        lanes = min(LANES, 1 << (width - at).bit_length() - 1)
        yield at, lanes
        at += lanes


def spread(value: Expr, lanes: int = LANES) -> Expr:
    """Returns a vector of one value."""
    return value if lanes == 1 else T.broadcast(value, lanes)


def typed(dtype: str, lanes: int) -> str:
    """Returns the name of a vector type."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def wide(value: Expr, lanes: int = LANES) -> Expr:
    """Converts a vector to float32."""
    return T.cast(value, typed("float32", lanes))


def local(shape: Sequence[int], dtype: str = "float32") -> Expr:
    """Allocates a small buffer that ends in registers.

    TVM puts buffers below 1 KiB with the scope "global" on the stack; for all others a kernel
    would call the memory pool in each iteration of its loop.
    """
    return T.alloc_buffer(tuple(shape), dtype)


def store(buffer: Expr, value: Expr, *indices: Expr) -> None:
    """Writes a scalar or a vector."""
    T.buffer_store(buffer, value, list(indices))


def local_rows(count: int, value: Expr) -> list[Expr]:
    """Allocates `count` vectors of 16 lanes and fills them with a number."""
    rows = [local((LANES,), value.ty.dtype) for _ in range(count)]
    for row in rows:
        store(row, spread(value), span(0))
    return rows


def prefetch(element: Expr) -> None:
    """Prefetches the cache line of a tensor's element, which may lie beyond the tensor's end."""
    T.evaluate(tirx.call_intrin("int32", _PREFETCH, element))


def call(function: str, *arguments: Expr) -> None:
    """Calls a C function that the program holds, which returns nothing.

    An element of a tensor is passed as its address, an integer as int64.
    """
    T.evaluate(tirx.call_intrin("int32", _CALL, StringImm(function), *arguments))


def fold(values: Expr, combine: Callable[[Expr, Expr], Expr], lanes: int) -> Expr:
    """Combines the lanes of a local buffer (lanes,), a power of two, by halves; overwrites it."""
    while lanes > 1:
        lanes //= 2
        halves = combine(values[span(0, lanes)], values[span(lanes, lanes)])
        store(values, halves, span(0, lanes))
    return T.Bind(values[0])


def row_blocks(size: int) -> list[int]:
    """Returns how many rows `each_row_block` takes at a time: `size`, a third of it, one."""
    return sorted({size, max(size // 3, 1), 1}, reverse=True)


def each_row_block(rows: Expr, size: int, body: Callable[[Expr, int], None]) -> None:
    """Calls body(first row, count) for blocks of rows; see `row_blocks`."""
    done: Expr = T.int64(0)
    for count in row_blocks(size):
        first, blocks = done, T.Bind((rows - done) // count)
        with T.serial(0, blocks) as block:
            body(first + block * count, count)
        done = T.Bind(first + blocks * count)
