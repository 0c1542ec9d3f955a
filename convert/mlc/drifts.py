"""Bridges between MLC-LLM's source and the apache-tvm of this environment.

MLC-LLM builds a TVM of its own; apache-tvm's releases name some things otherwise, or have moved
them. Each bridge here stands for one such drift: it gives TVM the name that MLC-LLM's source uses,
or replaces the one function that the drift breaks. They change the process of
`convert.mlc.launch` alone. A bridge whose subject is missing fails with its own name.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module, util
from types import ModuleType
from typing import Any

import tvm
from tvm import relax, s_tir, tirx

from convert.engine.toolchain import zig_package

_CREATE_CACHE = "vm.builtin.paged_attention_kv_cache_create"
_NUMBERS_OF_026 = 5  # that this function's first argument has in a runtime of apache-tvm 0.26


class DriftError(Exception):
    """Source and TVM differ in a way that no bridge covers; the text begins with its name."""


@dataclass(frozen=True)
class Bridge:
    """What makes up for one drift."""

    name: str
    why: str
    build: Callable[[], None]

    def __call__(self) -> None:
        """Builds the bridge.

        Raises:
            DriftError: what it changes is not there, or not what it was.
        """
        try:
            self.build()
        except (AttributeError, ImportError, AssertionError, TypeError) as error:
            raise DriftError(f"{self.name} ({self.why}): {error}") from error


def _variable_names() -> None:
    if not hasattr(relax.Var, "name_hint"):
        assert hasattr(relax.Var, "name"), "relax.Var has no name"
        relax.Var.name_hint = property(lambda self: self.name)


class _DataTypeMeta(type):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, tvm.ir.GenericConst)


class _DataTypeImm(metaclass=_DataTypeMeta):
    """`relax.DataTypeImm` as MLC-LLM calls it, and asks for it: a constant that holds a dtype."""

    def __new__(cls, dtype: str) -> Any:
        return tvm.ir.GenericConst(tvm.DataType(dtype), relax.AnyType())


def _constants() -> None:
    for name in ("Constant", "StringImm"):
        if not hasattr(relax, name):
            setattr(relax, name, getattr(tvm.ir, name))
    if not hasattr(relax, "DataTypeImm"):
        assert hasattr(tvm.ir, "GenericConst"), "tvm.ir has no GenericConst"
        relax.DataTypeImm = _DataTypeImm


def _blocks() -> None:
    for name in ("SBlock", "SBlockRealize"):
        if not hasattr(tirx, name):
            setattr(tirx, name, getattr(s_tir, name))


def is_buffer(parameter: Any) -> bool:
    """Whether a kernel's parameter is a buffer; the others are numbers."""
    return isinstance(parameter.ty, tirx.BufferType)


def _buffers() -> None:
    if not hasattr(tirx.PrimFunc, "buffer_map"):
        assert hasattr(tirx, "BufferType"), "tirx has no BufferType"
        tirx.PrimFunc.buffer_map = property(
            lambda self: {one: one for one in self.params if is_buffer(one)}
        )


def split_off_global_buffers(func: Any) -> tuple[Any, list[Any]]:
    """Turns the buffers that a kernel allocates in global memory into parameters.

    Args:
        func: a `tirx.PrimFunc` whose body is its root block.

    Returns:
        The new kernel, its new parameters behind the last buffer, and their types for Relax.
    """
    root = func.body.block
    lifted = [buffer for buffer in root.alloc_buffers if buffer.scope() == "global"]
    if not lifted:
        return func, []
    kept = [buffer for buffer in root.alloc_buffers if buffer.scope() != "global"]
    end = 1 + max(i for i, parameter in enumerate(func.params) if is_buffer(parameter))
    parameters = [*func.params[:end], *lifted, *func.params[end:]]
    block = s_tir.SBlock(
        [], [], [], "root", root.body, alloc_buffers=kept, annotations=root.annotations
    )
    body = s_tir.SBlockRealize([], True, block)
    types = [relax.TensorType(buffer.shape, buffer.dtype) for buffer in lifted]
    return tirx.PrimFunc(parameters, body, func.ret_type, func.attrs), types


def _lifted_buffers() -> None:
    passes: Any = import_module("mlc_llm.compiler_pass.lift_global_buffer_alloc")
    assert callable(passes.remove_global_buf_alloc)
    passes.remove_global_buf_alloc = split_off_global_buffers


def _cpu_schedules() -> None:
    """Unrolled by this rule, LLVM takes minutes for each quantized product of a vector.

    A library for this machine is for verification; loops as they are will do.
    """
    cpu: Any = import_module("tvm.s_tir.dlight.cpu")
    rules = import_module("tvm.s_tir.dlight.base.schedule_rule")

    class NoSchedule(rules.ScheduleRule):  # type: ignore[misc,name-defined]
        def apply(self, func: Any, target: Any, tunable: bool) -> None:
            """Leaves every kernel to the next rule; there is none."""

    assert hasattr(cpu, "GEMV")
    cpu.GEMV = NoSchedule


def wait_before_overwriting(func: Any) -> Any:
    """Puts a barrier before the last statement of a kernel: the store to its second parameter.

    Args:
        func: TVM's `merge_state_inplace`. All threads of a row read the row's `s`, and each
            overwrites it. Without a barrier some read what others have written already, unless
            the device runs the whole row in step: attention then has wrong weights.

    Raises:
        DriftError: it is another kernel.
    """
    return func.with_body(_wait_before_last(func.body, func.params[1]))


def _wait_before_last(statement: Any, buffer: Any) -> Any:
    """Rebuilds the statements around the last one, which stores to a buffer."""
    match statement:
        case s_tir.SBlockRealize():
            block = _wait_before_last(statement.block, buffer)
            return s_tir.SBlockRealize(statement.iter_values, statement.predicate, block)
        case s_tir.SBlock() as it:
            body = _wait_before_last(it.body, buffer)
            lists = (it.init, it.alloc_buffers, it.match_buffers, it.annotations)
            return s_tir.SBlock(it.iter_vars, it.reads, it.writes, it.name_hint, body, *lists)
        case tirx.For() as it:
            body = _wait_before_last(it.body, buffer)
            end = (it.thread_binding, it.annotations, it.step)
            return tirx.For(it.loop_var, it.min, it.extent, it.kind, body, *end)
    *before, store = getattr(statement, "seq", [statement])
    if not (isinstance(store, tirx.BufferStore) and store.buffer.same_as(buffer)):
        raise DriftError("merged-states (a barrier goes before the last store): another kernel")
    return tirx.SeqStmt([*before, tirx.Evaluate(tirx.op.tvm_storage_sync("shared")), store])


def _merged_states() -> None:
    kv_cache: Any = import_module("tvm.relax.frontend.nn.llm.kv_cache")
    build = kv_cache._merge_state_inplace
    kv_cache._merge_state_inplace = lambda *args: wait_before_overwriting(build(*args))


def _linker() -> None:
    """Links a library for this machine with zig, so that no compiler of the system is needed."""
    cc: Any = import_module("tvm.support.cc")

    def create_shared(output: str, objects: Sequence[str], *_: Any, **__: Any) -> None:
        zig = zig_package() / "zig"
        subprocess.run([str(zig), "ld.lld", "-shared", "-o", output, *objects], check=True)

    assert callable(cc.create_shared)
    cc.create_shared = create_shared


def _downloads() -> None:
    """MLC-LLM's command line imports `requests` for downloads, which a compilation never makes."""
    if util.find_spec("requests") is None:
        sys.modules["requests"] = ModuleType("requests")


# In this order; the last needs the source's own modules, which need the others.
BRIDGES = (
    Bridge("variable-names", "relax.Var.name_hint is now .name", _variable_names),
    Bridge("constants", "Constant, StringImm and DataTypeImm left relax", _constants),
    Bridge("blocks", "SBlock and SBlockRealize moved from tirx to s_tir", _blocks),
    Bridge("buffers", "a kernel's parameters are buffers; buffer_map is gone", _buffers),
    Bridge("cpu-schedules", "dlight's GEMV rule unrolls too far for LLVM", _cpu_schedules),
    Bridge("merged-states", "threads overwrite what others have yet to read", _merged_states),
    Bridge("linker", "TVM links with the system's compiler", _linker),
    Bridge("downloads", "the command line imports requests", _downloads),
    Bridge("lifted-buffers", "kernels are built without a buffer_map", _lifted_buffers),
)


def build_bridges() -> None:
    """Builds every bridge.

    Raises:
        DriftError: one does not fit this source, or this TVM.
    """
    for bridge in BRIDGES:
        bridge()


def compile_for(abi: str) -> None:
    """Makes the libraries that are compiled from now on fit a runtime.

    Args:
        abi: one of `convert.mlc.compilers.ABIS`.

    Raises:
        DriftError: this TVM creates the KV cache in a third way.
    """
    if abi == "0.27":
        return
    kv_cache: Any = import_module("tvm.relax.frontend.nn.llm.kv_cache")
    create = kv_cache.rx.call_pure_packed

    def create_for_026(name: Any, *args: Any, **more: Any) -> Any:
        """A runtime of 0.26 takes no size of the layers' sliding windows: the sixth number."""
        return create(name, *(_without_sixth(args) if name == _CREATE_CACHE else args), **more)

    kv_cache.rx = _Replaced(kv_cache.rx, call_pure_packed=create_for_026)


def _without_sixth(args: Sequence[Any]) -> tuple[Any, ...]:
    numbers = list(args[0].values)
    if len(numbers) != _NUMBERS_OF_026 + 1:
        raise DriftError(
            f"abi ({_CREATE_CACHE} takes other numbers): expected {_NUMBERS_OF_026 + 1} of them, "
            f"found {len(numbers)}"
        )
    return (relax.ShapeExpr(numbers[:_NUMBERS_OF_026]), *args[1:])


class _Replaced(ModuleType):
    """A module, some of its names replaced, for one other module that uses it."""

    def __init__(self, module: ModuleType, **names: Any) -> None:
        super().__init__(module.__name__)
        self.__dict__.update(names)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)
