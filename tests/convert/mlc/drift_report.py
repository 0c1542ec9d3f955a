"""Builds every bridge to a stand-in for MLC-LLM, in a process of its own; prints what it found."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from convert.mlc.launch import stand_in_for

stand_in_for(Path(sys.argv[1]))

import tvm  # noqa: E402
from tvm import relax, s_tir, tirx  # noqa: E402
from tvm.script import tirx as T  # noqa: E402

from convert.mlc import drifts  # noqa: E402

drifts.build_bridges()
found: dict[str, object] = {}
x = relax.Var("x", relax.TensorType((2, 3), "float32"))
found["variable-names"] = x.name_hint
half = relax.DataTypeImm("float16")
found["constants"] = [
    isinstance(half, relax.DataTypeImm),
    isinstance(relax.StringImm("a"), relax.DataTypeImm),
    str(half.value),
    relax.StringImm("a").value,
]
found["blocks"] = [tirx.SBlock is s_tir.SBlock, tirx.SBlockRealize is s_tir.SBlockRealize]


@T.prim_func(s_tir=True)
def double_twice(a: T.Buffer((8,), "float32"), n: T.int32, b: T.Buffer((8,), "float32")) -> None:
    between = T.sblock_alloc_buffer((8,), "float32")
    for i in range(8):
        with T.sblock("first"):
            v = T.axis.spatial(8, i)
            between[v] = a[v] * T.float32(2)
    for i in range(8):
        with T.sblock("second"):
            v = T.axis.spatial(8, i)
            b[v] = between[v] * T.float32(2)


found["buffers"] = [buffer.name for buffer in double_twice.buffer_map.values()]
lifted, types = drifts.split_off_global_buffers(double_twice)
found["lifted-buffers"] = {
    "parameters": [parameter.name for parameter in lifted.params],
    "types": [str(one.dtype) + str(list(map(int, one.shape.values))) for one in types],
    "left": len(lifted.body.block.alloc_buffers),
    "again": drifts.split_off_global_buffers(lifted)[1],
    "patched": sys.modules["mlc_llm.compiler_pass.lift_global_buffer_alloc"].remove_global_buf_alloc
    is drifts.split_off_global_buffers,
}
from tvm.s_tir import dlight  # noqa: E402

found["cpu-schedules"] = dlight.cpu.GEMV().apply(double_twice, tvm.target.Target("llvm"), False)
found["downloads"] = __import__("requests").__name__
from tvm.relax.frontend.nn.llm import kv_cache  # noqa: E402

merge = kv_cache._merge_state_inplace(4, 64, "float16", tvm.target.Target("opencl"))
found["merged-states"] = [line.strip() for line in merge.script().splitlines()[-2:]]

numbers = relax.ShapeExpr(list(range(6)))
for abi in ("0.27", "0.26"):
    drifts.compile_for(abi)
    call = kv_cache.rx.call_pure_packed(
        "vm.builtin.paged_attention_kv_cache_create", numbers, ty_args=relax.AnyType()
    )
    found[f"abi {abi}"] = [int(value) for value in call.args[1].values]
print(json.dumps(found))
