"""MLC-LLM's parameter files: `params_shard_N.bin`, and `tensor-cache.json` that lists them.

The decoder's parameters have MLC-LLM's names, the vision encoder's and the resampler's those of a
bundle, which `convert.mlc.minicpm_v` takes.

A file takes tensors until the next would reach 32 MiB; a tensor of half that size that does not
fit gets a file of its own. Source: TVM's tvm/contrib/tvmjs.py; bytes held by
tests/golden/mlc-q4f16_1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from convert.bundle.plan import Plan
from convert.calibrate.store import CalibratedWeights
from convert.checkpoint.reader import Checkpoint
from convert.encode import read_weight
from convert.support.progress import Progress
from quantize.fast import CHUNK_VALUES, quantize_int8_fast, quantize_weight
from quantize.layout import pack_mlc, pack_mlc_int8
from quantize.methods import find_method
from quantize.schemes import Array, row_chunks

CACHE = "tensor-cache.json"
SHARD_BYTES = 32 * 2**20

# The bundle's tensors by MLC-LLM's names, layer for layer in the order of Hugging Face's names.
_LAYER = {
    "input_norm.weight": "input_layernorm.weight",
    "down": "mlp.down_proj",
    "gate_up": "mlp.gate_up_proj",
    "post_norm.weight": "post_attention_layernorm.weight",
    "qkv": "self_attn.wqkv_pack",
    "o": "self_attn.o_proj",
}


def mlc_names(layers: int, untied_head: bool) -> dict[str, str]:
    """Returns MLC-LLM's names of a decoder's tensors by ours, in the order of the files.

    That is the order in which Hugging Face's libraries write a checkpoint: alphabetical.
    """
    names = {"llm.head": "lm_head"} if untied_head else {}
    names["llm.embed"] = "model.embed_tokens"
    for i in sorted(range(layers), key=str):
        names |= {f"llm.layers.{i}.{o}": f"model.layers.{i}.{m}" for o, m in _LAYER.items()}
    return names | {"llm.norm.weight": "model.norm.weight"}


def names_in(plan: Plan) -> dict[str, str]:
    """Returns the names that MLC-LLM has for a plan's tensors, in the order of the files."""
    ours = [tensor.name for tensor in plan.tensors]
    layers = sum(name.startswith("llm.layers.") and name.endswith(".qkv") for name in ours)
    names = mlc_names(layers, "llm.head" in ours)
    names |= {name: name for name in ours if not name.startswith("llm.")}
    assert set(names) == set(ours)
    return names


def write_params(
    checkpoint: Checkpoint,
    plan: Plan,
    folder: Path,
    progress: Progress,
    calibrated: CalibratedWeights | None = None,
) -> int:
    """Writes a model's parameters as MLC-LLM's `convert_weight` does; one tensor is in memory.

    Args:
        checkpoint: whose weights.
        plan: of what is written: matrices of the decoder in 4 bits, the vision part's in int8.
        folder: where to write.
        progress: counts tensors.
        calibrated: what calibration made, if the method has one.

    Returns:
        The bytes of all parameters.

    Raises:
        CheckpointError: a tensor holds NaN, infinity, or more than float16 can.
    """
    names = names_in(plan)
    shards = _Shards(folder)
    for done, (name, mlc_name) in enumerate(names.items()):
        progress("MLC weights", done, len(names))
        for full_name, values in _encode(checkpoint, plan, name, mlc_name, calibrated):
            shards.add(full_name, values)
    progress("MLC weights", len(names), len(names))
    return shards.finish(plan.parameters)


def _encode(
    checkpoint: Checkpoint,
    plan: Plan,
    name: str,
    mlc_name: str,
    calibrated: CalibratedWeights | None,
) -> Iterator[tuple[str, Array]]:
    tensor = next(tensor for tensor in plan.tensors if tensor.name == name)
    replaced = None if calibrated is None else calibrated.replaced(name)
    if tensor.format == "q8":
        codes8, scale = quantize_int8_fast(read_weight(checkpoint, tensor), name=name)
        matrix = mlc_name.removesuffix(".weight")
        yield f"{matrix}.q_weight", pack_mlc_int8(codes8)
        yield f"{matrix}.q_scale", scale
        return
    if tensor.format != "q4":
        weight = read_weight(checkpoint, tensor) if replaced is None else replaced
        yield mlc_name, weight.astype(np.float16)
        return
    codes = None if calibrated is None else calibrated.codes(name)
    if codes is None:
        packed, scale = _quantize(read_weight(checkpoint, tensor), plan, name)
    else:
        packed, scale = pack_mlc(codes[0]), codes[1]
    yield f"{mlc_name}.q_weight", packed
    yield f"{mlc_name}.q_scale", scale


def _quantize(weight: Array, plan: Plan, name: str) -> tuple[Array, Array]:
    """Quantizes a matrix, some rows at a time: packed (N, K/8) uint32, scale (N, K/G) float16."""
    scheme, method = plan.recipe.scheme, find_method(plan.recipe.method)
    count, columns = weight.shape
    packed = np.empty((count, columns // 8), np.uint32)
    scale = np.empty((count, columns // scheme.group_size), np.float16)
    for rows in row_chunks(count, columns, CHUNK_VALUES):
        q, scale[rows] = quantize_weight(weight[rows], scheme, method, name=name)
        packed[rows] = pack_mlc(q)
    return packed, scale


class _Shards:
    """Files of parameters, in the making."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shards: list[dict[str, Any]] = []
        self._records: list[dict[str, Any]] = []
        self._data = bytearray()

    def add(self, name: str, values: Array) -> None:
        """Adds a parameter to the file at hand, or to one of its own."""
        record = {
            "name": name,
            "shape": list(values.shape),
            "dtype": str(values.dtype),
            "format": "f32-to-bf16",  # what MLC-LLM would do to float32; there is none
            "nbytes": values.nbytes,
            "byteOffset": 0,
        }
        if len(self._data) + values.nbytes >= SHARD_BYTES:
            if values.nbytes * 2 >= SHARD_BYTES:
                self._write(values.tobytes(), [record])
                return
            self._flush()
        record["byteOffset"] = len(self._data)
        self._records.append(record)
        self._data += values.tobytes()

    def finish(self, parameters: int) -> int:
        """Writes what is left, and the list of all; returns the parameters' bytes.

        Args:
            parameters: values before quantization.
        """
        self._flush()
        nbytes: int = sum(shard["nbytes"] for shard in self._shards)
        metadata = {
            "ParamSize": sum(len(shard["records"]) for shard in self._shards),
            "ParamBytes": float(nbytes),
            "BitsPerParam": nbytes * 8.0 / parameters,
        }
        text = json.dumps({"metadata": metadata, "records": self._shards}, indent=4)
        (self._folder / CACHE).write_text(text, "utf-8")
        return nbytes

    def _flush(self) -> None:
        if self._data:
            self._write(self._data, self._records)
        self._data, self._records = bytearray(), []

    def _write(self, data: bytes | bytearray, records: list[dict[str, Any]]) -> None:
        name = f"params_shard_{len(self._shards)}.bin"
        (self._folder / name).write_bytes(data)
        self._shards.append(
            {
                "dataPath": name,
                "format": "raw-shard",
                "nbytes": len(data),
                "records": records,
                # MLC-LLM compares it after a download; nothing hangs on its strength.
                "md5sum": hashlib.md5(data, usedforsecurity=False).hexdigest(),
            }
        )
