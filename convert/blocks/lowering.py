"""The passes from blocks to machine code: those of TVM's passes that our kernels need.

TVM's own list for kernels serves schedules, GPUs and narrow floats. Our kernels are loops already;
without the passes that do not change them, a module compiles in a third of the time. Two did harm:
`CompactBufferAllocation` sizes a cache's rows by a formula of 200 minima, which every later pass
then simplifies again; `HoistIfThenElse` simplifies everything for conditions that LLVM hoists.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax, s_tir, tirx
from tvm.tirx.compilation_pipeline import (
    finalize_device_passes,
    finalize_host_passes,
    register_tir_pipeline,
)

_SHAPES = "tirx.is_host_func"  # an attribute of functions that compute sizes from others
KERNELS = "minicpmv"  # the name under which TVM knows `_kernel_passes`


def build(module: Any, target: dict[str, Any]) -> Any:
    """Compiles a Relax module of blocks.

    Args:
        module: what `Graph.module` gives.
        target: TVM's, as in `configs/target/`.

    Returns:
        An executable: `convert.engine.build.export_objects` writes it, Python can run it.
    """
    return relax.build(
        module,
        target=tvm.target.Target(target),
        relax_pipeline=_block_passes(),
        tir_pipeline=KERNELS,
    )


def _block_passes() -> Any:
    """Returns the passes from Relax to the VM; kernels are called as they are, none is fused."""
    return tvm.transform.Sequential(
        [
            relax.transform.CallTIRRewrite(),
            relax.transform.StaticPlanBlockMemory(),
            relax.transform.LowerAllocTensor(),
            relax.transform.KillAfterLastUse(),
            relax.transform.LowerRuntimeBuiltin(),
            relax.transform.ComputePrimValue(),
            relax.transform.VMShapeLower(),
            _ordered_shapes,
            relax.transform.AttachGlobalSymbol(),
        ]
    )


@tvm.transform.module_pass(opt_level=0, name="OrderedShapes")  # type: ignore[untyped-decorator]
def _ordered_shapes(module: Any, _: Any) -> Any:
    """Stores computed sizes by their slots.

    `VMShapeLower` writes them in the order of a table of pointers, which differs from process to
    process, and LLVM's machine code depends on that order.
    """
    ordered = module.clone()
    for name, function in module.functions.items():
        if _SHAPES in (function.attrs or ()):
            ordered.update_func(name, function.with_body(_by_slot(function.body)))
    return ordered


def _by_slot(body: Any) -> Any:
    """Orders stores. Their values follow from a function's variables, which none of them writes."""
    if isinstance(body, tirx.BufferStore):
        return body
    stores = {int(store.indices[0]): store for store in body}
    assert len(stores) == len(body), "each slot is written once"
    return tirx.SeqStmt([stores[slot] for slot in sorted(stores)])


def _kernel_passes() -> tuple[Any, Any, Any]:
    """Returns the passes from kernels to LLVM's input, and TVM's own for the last step."""
    passes = tvm.transform.Sequential(
        [
            # From the form with blocks, which the IR builder makes, to plain statements.
            s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
            s_tir.transform.ConvertBlocksToOpaque(),
            s_tir.transform.LowerMatchBuffer(),
            s_tir.transform.LowerOpaqueBlock(),
            # Flat, 32-bit indices; loops as they are meant.
            tirx.transform.FlattenBuffer(),
            tirx.transform.NarrowDataType(32),
            s_tir.transform.LoopPartition(),
            tirx.transform.VectorizeLoop(),
            tirx.transform.StorageRewrite(),
            tirx.transform.UnrollLoop(),
            tirx.transform.StmtSimplify(),
            tirx.transform.RemoveNoOp(),
            s_tir.transform.RewriteUnsafeSelect(),
            tirx.transform.CommonSubexprElim(),
            # Functions that the VM can call.
            tirx.transform.AnnotateEntryFunc(),
            tirx.transform.SplitHostDevice(),
            tirx.transform.MakePackedAPI(),
        ]
    )
    return passes, finalize_host_passes, finalize_device_passes


register_tir_pipeline(KERNELS, _kernel_passes)
