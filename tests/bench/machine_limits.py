"""What a machine can do at most: bytes read per second, and multiply-adds of an instruction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm.script.ir_builder import tirx as T

from convert.blocks.tir import kernel, local, span, store
from convert.engine.compile import Variant

Expr = Any  # TVM has no type stubs
Run = Callable[[], None]

READ_BYTES = 256 << 20  # more than caches hold
_CHAINS = 12  # independent sums: latency times throughput of the instructions below
_STEPS = 400_000  # of every chain, per run
_READERS = 8  # independent sums of a reader
_CHUNKS = 64  # parts of the buffer that threads take


@dataclass(frozen=True)
class Instruction:
    """A multiply instruction: result = f(a, b), or f(result, a, b) where it adds, too."""

    name: str  # LLVM's
    operands: str  # type of a and b
    result: str  # type
    multiply_adds: int
    adds: bool  # otherwise chains go through a


PEAKS = {
    "vnni": {
        "int8": Instruction("llvm.x86.avx512.vpdpbusd.512", "int8x64", "int32x16", 64, True),
        "int16": Instruction("llvm.x86.avx512.vpdpwssd.512", "int16x32", "int32x16", 32, True),
        "float32": Instruction("llvm.fma.v16f32", "float32x16", "float32x16", 16, True),
    },
    "avx2": {
        "int8": Instruction("llvm.x86.avx2.pmadd.ub.sw", "int8x32", "int16x16", 32, False),
        "int16": Instruction("llvm.x86.avx2.pmadd.wd", "int16x16", "int32x8", 16, False),
        "float32": Instruction("llvm.fma.v8f32", "float32x8", "float32x8", 8, True),
    },
    "sse": {
        "int8": Instruction("llvm.x86.ssse3.pmadd.ub.sw.128", "int8x16", "int16x8", 16, False),
        "int16": Instruction("llvm.x86.sse2.pmadd.wd", "int16x8", "int32x4", 8, False),
        "float32": Instruction("*", "float32x4", "float32x4", 4, False),
    },
}  # by names of convert/blocks/products.py; "*" is the plain product, where there is no FMA


def multiplier(instruction: Instruction, variant: Variant, threads: int) -> tuple[Run, int]:
    """Makes a loop that only multiplies registers; returns it and its multiply-adds."""
    lanes = int(instruction.operands.rpartition("x")[2])
    dtype = instruction.operands.rpartition("x")[0]
    sums = int(instruction.result.rpartition("x")[2])
    result = instruction.result.rpartition("x")[0]
    with kernel("multiply") as k:
        operands = k.tensor("operands", (2, lanes), dtype)
        out = k.tensor("out", (threads, _CHAINS, sums), result)
        with T.parallel(0, threads) as thread:
            state = local((_CHAINS, sums), result)
            a, b = (T.Bind(operands[i, span(0, lanes)]) for i in range(2))
            for i in range(_CHAINS):
                store(
                    state,
                    T.reinterpret(instruction.result, T.broadcast(_one(result), sums)),
                    i,
                    span(0, sums),
                )
            with T.serial(0, _STEPS):
                for i in range(_CHAINS):
                    value = state[i, span(0, sums)]
                    store(state, _step(instruction, value, a, b), i, span(0, sums))
            for i in range(_CHAINS):
                store(out, state[i, span(0, sums)], thread, i, span(0, sums))
    run = _compile(k.function, variant)
    arguments = [np.ones((2, lanes), dtype), np.zeros((threads, _CHAINS, sums), result)]
    tensors = [tvm.runtime.tensor(value) for value in arguments]
    return lambda: run(*tensors), threads * _CHAINS * _STEPS * instruction.multiply_adds


def reader(variant: Variant) -> tuple[Run, int]:
    """Makes a plain read of memory that caches do not hold; returns it and its bytes."""
    width = READ_BYTES // _CHUNKS // 4
    with kernel("read") as k:
        memory = k.tensor("memory", (_CHUNKS, width), "int32")
        out = k.tensor("out", (_CHUNKS, 16), "int32")
        with T.parallel(0, _CHUNKS) as chunk:
            sums = local((_READERS, 16), "int32")
            for i in range(_READERS):
                store(sums, T.broadcast(T.int32(0), 16), i, span(0))
            with T.serial(0, width // (16 * _READERS)) as step:
                for i in range(_READERS):
                    part = memory[chunk, span((step * _READERS + i) * 16)]
                    store(sums, sums[i, span(0)] + part, i, span(0))
            total = sums[0, span(0)]
            for i in range(1, _READERS):
                total = total + sums[i, span(0)]
            store(out, total, chunk, span(0))
    run = _compile(k.function, variant)
    arguments = [np.ones((_CHUNKS, width), np.int32), np.zeros((_CHUNKS, 16), np.int32)]
    tensors = [tvm.runtime.tensor(value) for value in arguments]
    return lambda: run(*tensors), READ_BYTES


def launcher(variant: Variant, threads: int) -> Run:
    """Makes a kernel that does next to nothing on every thread: what a launch costs."""
    with kernel("launch") as k:
        out = k.tensor("out", (threads, 16), "int32")
        with T.parallel(0, threads) as thread:
            store(out, T.int32(1), thread, 0)
    run = _compile(k.function, variant)
    tensor = tvm.runtime.tensor(np.zeros((threads, 16), np.int32))
    return lambda: run(tensor)


def _one(dtype: str) -> Expr:
    return T.float32(1) if dtype == "float32" else getattr(T, dtype)(1)


def _step(instruction: Instruction, value: Expr, a: Expr, b: Expr) -> Expr:
    if instruction.name == "*":
        return value * b
    if instruction.adds:
        return T.call_llvm_pure_intrin(instruction.result, instruction.name, value, a, b)
    chained = T.reinterpret(instruction.operands, value)
    return T.call_llvm_pure_intrin(instruction.result, instruction.name, chained, b)


def _compile(function: Expr, variant: Variant) -> Any:
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    return tvm.compile(module, target=tvm.target.Target(variant.tvm))["main"]
