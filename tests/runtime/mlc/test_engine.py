"""A library and a package that do not belong together; the library says only what it takes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import tirx as T

from convert.bundle.errors import BundleError
from convert.engine.toolchain import zig_package
from runtime.mlc.engine import MlcEngine

PARAMS = {
    "model.norm.weight": np.ones(8, np.float16),
    "model.embed_tokens.q_weight": np.ones((5, 1), np.uint32),
}
SIZES = {"context_window_size": 64, "prefill_chunk_size": 16}


@T.prim_func(s_tir=True)
def nothing(a: T.Buffer((1,), "float32")) -> None:
    T.func_attr({"global_symbol": "nothing"})
    a[0] = T.float32(0)


def build(path: Path, metadata: Any) -> Path:
    """Compiles a library that has `_metadata` alone, and a kernel, as TVM expects one."""
    block = relax.BlockBuilder()
    with block.function("_metadata", params=[]):
        block.emit_func_output(tvm.ir.StringImm(json.dumps(metadata)))
    module = block.finalize()
    module["nothing"] = nothing

    def link(output: str, objects: Sequence[str], **_: Any) -> None:
        zig = zig_package() / "zig"
        subprocess.run([str(zig), "ld.lld", "-shared", "-o", output, *objects], check=True)

    tvm.compile(module, target="llvm").export_library(str(path), fcompile=link)
    return path


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    taken = [
        {"name": name, "dtype": str(values.dtype), "shape": list(values.shape)}
        for name, values in PARAMS.items()
    ]
    path = tmp_path_factory.mktemp("library") / "host.so"
    return build(path, {"params": taken, **SIZES})


def test_its_own_parameters(library: Path) -> None:
    assert MlcEngine(library, PARAMS).window == SIZES["context_window_size"]


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"model.norm.weight": np.ones(9, np.float16)}, r"as float16 \[8\]; the package has .*9"),
        ({"model.norm.weight": np.ones(8, np.float32)}, r"the package has float32 \[8\]"),
        ({"lm_head.q_weight": np.ones(1, np.uint32)}, "takes no parameter lm_head.q_weight"),
        ({"model.norm.weight": None}, r"takes a parameter model\.norm\.weight, which the"),
    ],
)
def test_parameters_of_another_model(changed: Any, problem: str, library: Path) -> None:
    params = {name: values for name, values in (PARAMS | changed).items() if values is not None}
    with pytest.raises(BundleError, match=rf"compiled for another model: .*{problem}") as error:
        MlcEngine(library, params)
    assert "convert the checkpoint again" in str(error.value)


@pytest.mark.parametrize("metadata", [[], {}, {"params": []}, {"params": [{}], **SIZES}])
def test_a_library_of_something_else(metadata: Any, tmp_path: Path) -> None:
    path = build(tmp_path / "other.so", metadata)
    with pytest.raises(BundleError, match=r"other\.so: cannot be loaded: "):
        MlcEngine(path, PARAMS)
